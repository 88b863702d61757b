/*
 * health.h: does the serving engine still answer?
 */
#ifndef PGFT_HEALTH_H
#define PGFT_HEALTH_H

typedef struct PgftHealth
{
	int fd;         /* an open question, -1 if none */
	int64 ask_at;   /* when the next is due, on the monotonic clock */
	int unanswered; /* questions in a row */
} PgftHealth;

/* Begin with an engine that has just come up. */
extern void pgft_health_start(PgftHealth *health);

/*
 * Take an answer in, ask again when that is due; never waits.  To be called
 * from ask_at on.  Returns false when the engine has long ceased to answer.
 */
extern bool pgft_health_check(PgftHealth *health);

/* Forget an engine that is gone. */
extern void pgft_health_stop(PgftHealth *health);

/* A new non-blocking connection to the engine, -1 with errno set when there is none to be had. */
extern int pgft_engine_connect(void);

#endif
