/*
 * extension_hook.h: DROP EXTENSION beside workers and sessions at work.
 */
#ifndef PGFT_EXTENSION_HOOK_H
#define PGFT_EXTENSION_HOOK_H

extern void pgft_extension_hook_init(void);

#endif
