/*
 * job_file.h: job.json, what a training run is asked to do (README.md), and how
 * options that nobody set get their values.
 */
#ifndef FT_JOB_FILE_H
#define FT_JOB_FILE_H

#include "model.h"
#include "prompt_template.h"

#include <jansson.h>

typedef enum ft_scheduler
{
	FT_COSINE,
	FT_LINEAR,
	FT_CONSTANT
} ft_scheduler;

/* Options by SQL-API's names.  Before ft_options_resolve() 0 (or -1 where 0 has a meaning, NaN for
 * reals) says "unset". */
typedef struct ft_options
{
	int max_epochs;    /* 1 to 50 */
	int64_t max_steps; /* 0: as many as the epochs have */
	int lora_r;
	double lora_alpha;
	unsigned lora_target_modules; /* bit per ft_target */
	bool all_linear;              /* no list was given: all that the base has */
	bool use_rslora;
	double lora_dropout; /* in [0, 1) */
	bool qlora;          /* method qlora: LoRA over the blocks' matrices in few bits (model.h) */
	double learning_rate;
	ft_scheduler lr_scheduler;
	double min_lr_ratio; /* of the learning rate, at the end */
	double warmup_ratio; /* of all steps */
	double weight_decay;
	double max_grad_norm;            /* 0: no clipping */
	int64_t batch_size;              /* tokens of an optimizer step */
	int gradient_accumulation_steps; /* batches of a step; 0: as few as fit the memory */
	int max_seq_length;
	bool packing; /* false: a batch for each document */
	bool train_on_inputs;
	char prompt_template[FT_PROMPT_TEMPLATE_SIZE]; /* empty: none */
	int n_evals;       /* 0: every 10 % of progress, at least 10 steps apart */
	int n_checkpoints; /* evenly over the run, beside those that are written anyway; 0: none */
	int early_stopping_patience; /* evaluations (early_stopping.h); 0: none */
	double validation_fraction;
	uint64_t seed;
	bool full;       /* method full: all of the base's own weights are trained */
	unsigned given;  /* what an adapter to continue from must have: FT_GIVEN_* */
	bool dpo;        /* method dpo: LoRA trained on preference pairs (preference.h) */
	double dpo_beta; /* of that method; 0: unset */
} ft_options;

enum
{
	FT_GIVEN_RANK = 1,
	FT_GIVEN_ALPHA = 2,
	FT_GIVEN_TARGETS = 4,
	FT_GIVEN_RSLORA = 8
};

typedef struct ft_job
{
	char *base_path;
	char *base_name;
	char *base_template; /* NULL: the file's own */
	int context_length;  /* 0: the file's own */
	char *base_digest;   /* NULL: not checked */
	char *adapter;       /* a PEFT directory, to be put over the base or gone on with; NULL: none */
	char *export_path;   /* directory that export makes; NULL: none */
	char *export_format; /* with export_path, never NULL */
	char *device;        /* "auto", "cpu", "cuda" … */
	int threads;         /* 0: the device's default */
	ft_numerics numerics;
	int replay_from; /* metrics of this step and later are told again; -1: none */
	ft_options options;
} ft_job;

/* Read `directory`/job.json.  FT_INVALID names the key; FT_UNSUPPORTED what cannot be done. */
ft_status ft_job_read(const char *directory, ft_job **job);
void ft_job_free(ft_job *job);

/* The context that limits a document: the option max_seq_length, or what suits the model. */
int ft_options_max_length(const ft_options *options, const ft_config *config, int context_length);

/* What automatic values depend on. */
typedef struct ft_data_size
{
	int64_t documents;
	int64_t tokens;     /* of one epoch */
	int32_t max_length; /* of the longest document */
} ft_data_size;

/* Fill in every option that is unset. */
void ft_options_resolve(ft_options *options, const ft_config *config, int context_length,
						const ft_data_size *data);

struct ft_adapter;
/* The prompt template (NULL: none) of an adapter is that of the rows; FT_INVALID where another was
 * given. */
ft_status ft_options_adopt_template(ft_options *options, const char *prompt_template);
/* An adapter's shape is the options' from now on; FT_INVALID where one of them was given and is
 * another. */
ft_status ft_options_adopt(ft_options *options, const struct ft_adapter *adapter);

/* All options by name, as event and plan file have them. */
json_t *ft_options_json(const ft_options *options);
/* From such an object; FT_INVALID or FT_UNSUPPORTED names the option. */
ft_status ft_options_read(const json_t *object, ft_options *options);

#endif
