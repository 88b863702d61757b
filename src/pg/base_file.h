/*
 * base_file.h: what is kept of a base's file, as its server is created and altered.
 */
#ifndef PGFT_BASE_FILE_H
#define PGFT_BASE_FILE_H

/* After CREATE SERVER, once the base has its row. */
extern void pgft_base_created(const char *name);

/* After ALTER SERVER; whether the command named these options. */
extern void pgft_base_altered(const char *name, bool file, bool storage);

#endif
