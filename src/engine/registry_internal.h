/*
 * registry_internal.h: what registry.c and residency.c share.
 */
#ifndef FT_REGISTRY_INTERNAL_H
#define FT_REGISTRY_INTERNAL_H

#include "registry.h"

#include <pthread.h>

struct ft_registry
{
	ft_registry_config config;
	pthread_mutex_t mutex; /* over all below, and over every refs and used_at */
	pthread_cond_t
		changed; /* a model is idle or gone, or `ending` is set; by the monotonic clock */
	ft_base **bases;
	size_t n_bases;
	size_t bases_capacity;
	ft_lora_entry **loras;
	size_t n_loras;
	size_t loras_capacity;
	int64_t
		held; /* bytes of all that is not freed yet, registered or not, and of what is reserved */
	pthread_t keeper;
	bool has_keeper;
	bool ending;
};

/* Milliseconds of the monotonic clock. */
int64_t ft_registry_now(void);

/* Drop references; what nobody holds any more is freed.  Without the lock. */
void ft_registry_release(ft_registry *r, ft_base *base, ft_lora_entry *lora);

/* Take a base's or an adapter's name away; with the lock.  The registry's reference is then the
 * caller's to release, without it; with a base also those to the adapters over it, which
 * ft_registry_take_lora_over gives one a call, NULL after the last. */
void ft_registry_take_base(ft_registry *r, const ft_base *base);
void ft_registry_take_lora(ft_registry *r, const ft_lora_entry *lora);
ft_lora_entry *ft_registry_take_lora_over(ft_registry *r, const ft_base *base);

#endif
