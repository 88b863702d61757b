/*
 * residency.c: which models stay in memory.
 */
#include "residency.h"

#include "process.h"
#include "registry_internal.h"

#include <time.h>

/* How long a load only waits for models that are in use, and how many times as long in all. */
#define PATIENCE_MS 3000
#define WAIT_TIMES 10

static struct timespec
moment(int64_t ms)
{
	return (struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
}

static bool
lora_is_idle(const ft_lora_entry *lora, bool asked_only)
{
	return lora->refs == 1 && (lora->asked || !asked_only);
}

static bool
base_is_idle(const ft_registry *r, const ft_base *base, bool asked_only)
{
	int refs = base->refs - 1;

	for (size_t i = 0; i < r->n_loras; i++)
	{
		if (r->loras[i]->base != base)
			continue;
		if (!lora_is_idle(r->loras[i], asked_only))
			return false;
		refs--;
	}
	return refs == 0 && (base->asked || !asked_only);
}

/* Unload a base and what is over it.  With the lock, which is let go meanwhile. */
static void
unload_base(ft_registry *r, ft_base *base)
{
	ft_lora_entry *lora;

	ft_registry_take_base(r, base);
	while ((lora = ft_registry_take_lora_over(r, base)) != NULL)
	{
		pthread_mutex_unlock(&r->mutex);
		ft_registry_release(r, NULL, lora);
		pthread_mutex_lock(&r->mutex);
	}
	pthread_mutex_unlock(&r->mutex);
	ft_registry_release(r, base, NULL);
	pthread_mutex_lock(&r->mutex);
}

static void
unload_lora(ft_registry *r, ft_lora_entry *lora)
{
	ft_registry_take_lora(r, lora);
	pthread_mutex_unlock(&r->mutex);
	ft_log("log", "adapter \"%s\" unloaded", lora->id);
	ft_registry_release(r, NULL, lora);
	pthread_mutex_lock(&r->mutex);
}

/* --- models that nobody asks --- */

/* The idle model that was used last before all others; *base or *lora, both NULL for none.  With
 * asked_only one that has just been loaded is none. */
static void
longest_idle(const ft_registry *r, const ft_base *keep, bool asked_only, ft_base **base,
			 ft_lora_entry **lora)
{
	int64_t used_at = INT64_MAX;

	*base = NULL;
	*lora = NULL;
	for (size_t i = 0; i < r->n_bases; i++)
	{
		ft_base *b = r->bases[i];

		if (b != keep && b->used_at < used_at && base_is_idle(r, b, asked_only))
		{
			*base = b;
			used_at = b->used_at;
		}
	}
	for (size_t i = 0; i < r->n_loras; i++)
	{
		ft_lora_entry *l = r->loras[i];

		if (l->used_at < used_at && lora_is_idle(l, asked_only))
		{
			*base = NULL;
			*lora = l;
			used_at = l->used_at;
		}
	}
}

static void *
keep(void *argument)
{
	ft_registry *r = argument;

	pthread_mutex_lock(&r->mutex);
	while (!r->ending)
	{
		ft_base *base;
		ft_lora_entry *lora;
		int64_t until;
		struct timespec at;

		longest_idle(r, NULL, false, &base, &lora);
		if (base == NULL && lora == NULL)
		{
			pthread_cond_wait(&r->changed, &r->mutex);
			continue;
		}
		until = (base ? base->used_at : lora->used_at) + r->config.keep_alive_ms;
		if (ft_registry_now() < until)
		{
			at = moment(until);
			pthread_cond_timedwait(&r->changed, &r->mutex, &at);
		}
		else if (base)
			unload_base(r, base);
		else
			unload_lora(r, lora);
	}
	pthread_mutex_unlock(&r->mutex);
	return NULL;
}

ft_status
ft_residency_start(ft_registry *r)
{
	if (r->config.keep_alive_ms <= 0)
		return FT_OK;
	if (pthread_create(&r->keeper, NULL, keep, r) != 0)
		return ft_fail(FT_NO_MEMORY, "could not start a thread");
	r->has_keeper = true;
	return FT_OK;
}

void
ft_residency_stop(ft_registry *r)
{
	pthread_mutex_lock(&r->mutex);
	r->ending = true;
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->mutex);
	if (r->has_keeper)
		pthread_join(r->keeper, NULL);
	r->has_keeper = false;
}

/* --- room for another one --- */

/* The base in use that was asked last before all others. */
static ft_base *
longest_unasked(const ft_registry *r, const ft_base *keep)
{
	ft_base *found = NULL;

	for (size_t i = 0; i < r->n_bases; i++)
		if (r->bases[i] != keep && (found == NULL || r->bases[i]->used_at < found->used_at))
			found = r->bases[i];
	return found;
}

static long long
mebibytes(int64_t bytes)
{
	return (long long) (bytes + (1 << 20) - 1) >> 20;
}

static ft_status
too_large(int64_t bytes, bool exact, int64_t limit)
{
	return ft_hint(
		ft_fail(FT_NO_MEMORY,
				"the model needs %s%lld MiB of memory, all models together may hold %lld "
				"MiB",
				exact ? "" : "at least ", mebibytes(bytes), (long long) limit >> 20),
		"Raise engine_memory, or take a base of fewer bits.");
}

ft_status
ft_residency_reserve(ft_registry *r, int64_t bytes, bool exact, const ft_base *keep)
{
	int64_t limit = r->config.memory_bytes;
	int64_t begun = ft_registry_now();
	int64_t step = r->config.patience_ms > 0 ? r->config.patience_ms : PATIENCE_MS;
	int64_t patience = step;
	ft_status status = FT_OK;

	if (limit > 0 && bytes > limit)
		return too_large(bytes, exact, limit);
	pthread_mutex_lock(&r->mutex);
	while (limit > 0 && r->held + bytes > limit && status == FT_OK)
	{
		int64_t waited = ft_registry_now() - begun;
		ft_base *base;
		ft_lora_entry *lora;
		struct timespec at;

		longest_idle(r, keep, true, &base, &lora);
		if (base == NULL && lora == NULL && waited >= patience)
		{
			base = longest_unasked(r, keep);
			patience += step;
		}
		if (base)
			unload_base(r, base);
		else if (lora)
			unload_lora(r, lora);
		else if (r->ending || waited >= WAIT_TIMES * step)
			status = ft_fail(
				FT_BUSY, "the model needs %lld MiB of memory, others in use hold %lld of %lld MiB",
				mebibytes(bytes), (long long) r->held >> 20, (long long) limit >> 20);
		else
		{
			at = moment(begun + (waited < patience ? patience : WAIT_TIMES * step));
			pthread_cond_timedwait(&r->changed, &r->mutex, &at);
		}
	}
	if (status == FT_OK)
		r->held += bytes;
	pthread_mutex_unlock(&r->mutex);
	return status;
}

void
ft_residency_return(ft_registry *r, int64_t bytes)
{
	pthread_mutex_lock(&r->mutex);
	r->held -= bytes;
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->mutex);
}
