/*
 * registry.h: the bases and adapters that are loaded, by their callers' ids.
 *
 * An entry lives while it is registered or while a request uses it: unloading
 * or replacing one takes the name away at once and the memory when its last
 * user has ended.  Loading is slow and belongs into a thread of its own;
 * everything else is quick.  Thread-safe, but for loads: one thread does them
 * all, so that two loads of one id load once.
 */
#ifndef FT_REGISTRY_H
#define FT_REGISTRY_H

#include "chat_template.h"
#include "decode.h"
#include "digest.h"
#include "response_format.h"

typedef struct ft_registry ft_registry;

/* What a path named when it was read: another size or time means other contents. */
typedef struct ft_file_identity
{
	uint64_t device;
	uint64_t inode;
	int64_t size;
	int64_t mtime; /* nanoseconds */
} ft_file_identity;

typedef struct ft_base
{
	char *id;
	char *path;
	char *template_name;   /* as asked for, NULL: the file's own */
	int context_requested; /* 0: the model's own */
	ft_file_identity identity;
	char digest[FT_DIGEST_HEX];
	int64_t parameters;
	int64_t file_bytes;
	int64_t created; /* unix seconds */
	int64_t bytes;   /* of memory that it holds, with its cache */
	ft_model *model;
	ft_tokenizer *tokenizer;
	const ft_chat_template *chat_template;
	char *prompt_template;            /* what it was trained with (prompt_template.h); NULL: none */
	ft_kv_cache *cache;               /* the scheduler's */
	ft_decoder *decoder;              /* the scheduler's */
	ft_constraint_cache *constraints; /* got and put by one thread, the loop's */
	int context;                      /* tokens of prompt and answer together */
	int bos;                          /* begins a prompt that is no chat; -1: nothing does */
	size_t longest_token; /* bytes: n bytes of text are at least n / longest_token tokens */
	uint64_t full;        /* the scheduler's: round in which no more were let in */
	uint64_t stepped;     /* the scheduler's: round of the last step */
	int refs;             /* private */
	int64_t used_at;      /* private: when a reference was given back, ft_registry_now */
	bool asked;           /* private: by ft_registry_get since it was loaded */
} ft_base;

typedef struct ft_lora_entry
{
	char *id;
	char *path;
	ft_base *base; /* holds a reference */
	ft_adapter *adapter;
	ft_file_identity identity;
	int64_t created;
	int64_t bytes;   /* of memory */
	uint64_t serial; /* no other adapter that this process has loaded has it; above 0 */
	int refs;        /* private */
	int64_t used_at; /* private, like the base's */
	bool asked;      /* likewise */
} ft_lora_entry;

/* A model that a request uses: a base, and perhaps an adapter over it. */
typedef struct ft_model_ref
{
	ft_base *base;
	ft_lora_entry *lora; /* NULL: the base itself */
} ft_model_ref;

typedef struct ft_registry_config
{
	const ft_ops *ops;
	ft_device *device;
	int64_t cache_bytes;   /* of a base's key/value cache, 0: a default by the device's memory */
	int64_t memory_bytes;  /* that all models together may hold, 0: no limit */
	int64_t keep_alive_ms; /* after so long without use a model is unloaded, 0: never */
	int64_t patience_ms;   /* how long a load waits before it sends others away, 0: 3 s */
	int max_rows;          /* of a batch */
	int max_sequences;     /* of a batch */
	int prefill_rows;      /* of a batch and one prompt, 0: as many as there is room for */
	bool no_prefix_cache;
} ft_registry_config;

ft_status ft_registry_create(const ft_registry_config *config, ft_registry **registry);
/* No reference may be left, and no load under way. */
void ft_registry_free(ft_registry *registry);

/* FT_NOT_FOUND when no such model is loaded.  A found one is given back with ft_registry_put. */
ft_status ft_registry_get(ft_registry *registry, const char *id, ft_model_ref *ref);
void ft_registry_put(ft_registry *registry, ft_model_ref *ref);

/* Load a base; one of that id, path, options and unchanged file that is there already is found
 * instead. Another one of that id is replaced, and its adapters are unloaded.  Room is made for it
 * as residency.h says: FT_NO_MEMORY or FT_BUSY where there is none.  template_name NULL
 * and context_length 0: the file's own.  FT_MISMATCH when the file's SHA-256 is not digest (hex;
 * NULL: not checked).  The reference is the caller's. */
ft_status ft_registry_load_base(ft_registry *registry, const char *id, const char *path,
								const char *template_name, int context_length, const char *digest,
								ft_model_ref *ref);

/* Load an adapter over a loaded base: FT_NOT_FOUND when that is not there, FT_MISMATCH when its
 * digest is not base_digest (NULL: not checked). */
ft_status ft_registry_load_lora(ft_registry *registry, const char *id, const char *path,
								const char *base_id, const char *base_digest);
ft_status ft_registry_unload_lora(ft_registry *registry, const char *id);

/* Bytes that models hold, or will when they are loaded, and how many they may; 0: no limit. */
void ft_registry_memory(ft_registry *registry, int64_t *held, int64_t *limit);

/* Call back with every model: lora is NULL for a base.  The registry is locked meanwhile. */
typedef ft_status (*ft_registry_visitor)(void *context, const ft_base *base,
										 const ft_lora_entry *lora);
ft_status ft_registry_visit(ft_registry *registry, ft_registry_visitor visitor, void *context);

#endif
