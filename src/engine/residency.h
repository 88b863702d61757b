/*
 * residency.h: which models stay in memory.
 *
 * A model that nobody has used for the time keep_alive is unloaded.  Models together hold no more
 * than memory_bytes: room for another one is made by unloading those that nobody uses, the one
 * longest unused first.  One that was just loaded is in use until somebody has asked it: who had it
 * loaded is about to.  Where all are in use, a load waits; after some seconds the one longest
 * unused loses its name, so that it is gone when its last answer has ended: a model that is asked
 * without a pause keeps no other one out.  Whoever asks for an unloaded model is told that it is
 * not loaded, and loads it again.
 */
#ifndef FT_RESIDENCY_H
#define FT_RESIDENCY_H

#include "registry.h"

/* The thread that unloads idle models; only where keep_alive_ms is above 0. */
ft_status ft_residency_start(ft_registry *registry);
void ft_residency_stop(ft_registry *registry);

/* Make room for `bytes` more, and count them as held; exact false: it will take these at least.
 * `keep` (NULL: none) stays.  FT_NO_MEMORY when they are more than all models may hold, FT_BUSY
 * when no room came up in half a minute.  The loader's thread. */
ft_status
ft_residency_reserve(ft_registry *registry, int64_t bytes, bool exact, const ft_base *keep);
/* Give back what was reserved or held. */
void ft_residency_return(ft_registry *registry, int64_t bytes);

#endif
