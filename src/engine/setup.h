/*
 * setup.h: what the programs that work on a job directory (train, estimate,
 * evaluate) have in common: their arguments and signals, job.json, the base,
 * the rows and the device, and the events that tell of them.
 */
#ifndef FT_SETUP_H
#define FT_SETUP_H

#include "device.h"
#include "events.h"
#include "trainer.h"

/* Zero-initialise, but for what ft_setup_arguments sets; free with ft_setup_close. */
typedef struct ft_setup
{
	const char *directory;
	int control_fd; /* -1: none */
	int lock;       /* -1: not held */
	ft_events *events;
	ft_job *job;
	ft_model_file *file;
	char base_digest[FT_DIGEST_HEX];
	ft_tokenizer *tokenizer;
	const ft_chat_template *chat_template;
	ft_dataset *dataset;
	const ft_ops *ops;
	ft_device *device;
	ft_model *model;
	bool trains; /* set by who does: with method full the base is loaded for that */
} ft_setup;

#define FT_LONG_CALL_SECONDS 1800.0 /* a large base or checkpoint, and a slow disk */

/* PROGRAM JOBDIR [--control-fd N]; false, with the usage on standard error, for anything else. */
bool ft_setup_arguments(ft_setup *setup, int argc, char **argv);

/* Signals, events, and the watch over the parent. */
ft_status ft_setup_start(ft_setup *setup);

/* Log and tell a failure; the exit code of the program (README.md). */
int ft_setup_end(ft_setup *setup, ft_status status);

void ft_setup_close(ft_setup *setup);

/* Between layers and rows: progress for the heartbeat, and FT_CANCELLED after SIGTERM.  `setup` is
 * an ft_setup. */
ft_status ft_setup_tick(void *setup);
/* Has a signal asked for the end? */
bool ft_setup_terminated(void);

/* FT_BUSY when another engine works in the directory. */
ft_status ft_setup_lock(ft_setup *setup);

/* job.json, and the base, its tokenizer and its template.  FT_MISMATCH when the base is another
 * than the job says. */
ft_status ft_setup_open_base(ft_setup *setup);

/* The rows, tokenised unless they are already; their text is removed. */
ft_status ft_setup_open_dataset(ft_setup *setup);

/* The device, and the base on it. */
ft_status ft_setup_open_device(ft_setup *setup);

/* Give the options that nobody set their values. */
void ft_setup_resolve_options(ft_setup *setup);

/* The adapter that training begins with: a new one, or the one to continue from, whose shape
 * becomes that of the options; NULL with method full.  The caller frees it. */
ft_status ft_setup_new_adapter(ft_setup *setup, ft_adapter **adapter);

/* Write what a resume needs into the job's directory; `identity` says whose run it is. */
ft_status
ft_setup_save_checkpoint(const ft_setup *setup, ft_trainer *trainer, const char *identity);

ft_status ft_setup_send_started(ft_setup *setup, int64_t resumed_from);
ft_status ft_setup_send_dataset(ft_setup *setup);
ft_status ft_setup_send_plan(ft_setup *setup, const ft_trainer *trainer);

/* A number, or null where it is none. */
json_t *ft_real_or_null(double value);

#endif
