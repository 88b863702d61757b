/*
 * registry.c: loaded bases and adapters, and who still uses them.
 */
#include "registry.h"

#include "buffer.h"
#include "files.h"
#include "process.h"
#include "registry_internal.h"
#include "residency.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

/* Of a base's key/value cache where nothing was asked for; at least one whole context in any case.
 */
#define DEFAULT_CACHE_BYTES ((int64_t) 512 << 20)

/* A cache of fewer tokens is of no use to a model that could have more. */
#define LEAST_TOKENS 1024

/* --- identity of files --- */

static ft_status
identify(const char *path, ft_file_identity *identity)
{
	struct stat st;

	if (stat(path, &st) != 0)
		return ft_fail_errno("could not stat \"%s\"", path);
	*identity = (ft_file_identity){
		.device = st.st_dev,
		.inode = st.st_ino,
		.size = st.st_size,
		.mtime = (int64_t) st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec,
	};
	return FT_OK;
}

static bool
same_file(const ft_file_identity *a, const ft_file_identity *b)
{
	return a->device == b->device && a->inode == b->inode && a->size == b->size &&
		   a->mtime == b->mtime;
}

static bool
same_text(const char *a, const char *b)
{
	return a && b ? strcmp(a, b) == 0 : a == b;
}

static ft_status
copy_text(const char *from, char **to)
{
	*to = NULL;
	if (!from)
		return FT_OK;
	*to = strdup(from);
	if (!*to)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	return FT_OK;
}

/* --- entries --- */

static void
free_base(ft_base *base)
{
	ft_decoder_free(base->decoder);
	ft_kv_cache_free(base->cache);
	ft_constraint_cache_free(base->constraints);
	if (base->tokenizer)
		ft_tokenizer_free(base->tokenizer);
	ft_model_free(base->model);
	free(base->prompt_template);
	free(base->template_name);
	free(base->path);
	free(base->id);
	free(base);
}

static void
free_lora(ft_lora_entry *lora)
{
	ft_adapter_free(lora->adapter);
	free(lora->path);
	free(lora->id);
	free(lora);
}

int64_t
ft_registry_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void
ft_registry_release(ft_registry *r, ft_base *base, ft_lora_entry *lora)
{
	ft_base *with_lora = NULL;
	int64_t now = ft_registry_now();
	int64_t bytes = 0;
	bool base_ends = false;
	bool lora_ends = false;

	pthread_mutex_lock(&r->mutex);
	if (lora)
	{
		lora->used_at = now;
		lora_ends = --lora->refs == 0;
		if (lora_ends)
			with_lora = lora->base;
	}
	if (base)
	{
		base->used_at = now;
		base_ends = --base->refs == 0;
	}
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->mutex);
	if (lora_ends)
	{
		bytes = lora->bytes;
		free_lora(lora);
		ft_residency_return(r, bytes);
		ft_registry_release(r, with_lora, NULL);
	}
	if (base_ends)
	{
		bytes = base->bytes;
		ft_log("log", "model \"%s\" unloaded", base->id);
		free_base(base);
		ft_residency_return(r, bytes);
	}
}

static ft_base *
find_base(ft_registry *r, const char *id, size_t *index)
{
	for (size_t i = 0; i < r->n_bases; i++)
		if (strcmp(r->bases[i]->id, id) == 0)
		{
			if (index)
				*index = i;
			return r->bases[i];
		}
	return NULL;
}

static ft_lora_entry *
find_lora(ft_registry *r, const char *id, size_t *index)
{
	for (size_t i = 0; i < r->n_loras; i++)
		if (strcmp(r->loras[i]->id, id) == 0)
		{
			if (index)
				*index = i;
			return r->loras[i];
		}
	return NULL;
}

ft_status
ft_registry_create(const ft_registry_config *config, ft_registry **registry)
{
	ft_registry *r;
	pthread_condattr_t monotonic;
	ft_status status;

	FT_TRY(ft_alloc((void **) &r, 1, sizeof *r));
	r->config = *config;
	pthread_mutex_init(&r->mutex, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&r->changed, &monotonic);
	pthread_condattr_destroy(&monotonic);
	status = ft_residency_start(r);
	if (status != FT_OK)
		ft_registry_free(r);
	else
		*registry = r;
	return status;
}

void
ft_registry_free(ft_registry *r)
{
	if (!r)
		return;
	ft_residency_stop(r);
	while (r->n_loras > 0)
	{
		ft_lora_entry *lora = r->loras[--r->n_loras];

		ft_registry_release(r, NULL, lora);
	}
	while (r->n_bases > 0)
	{
		ft_base *base = r->bases[--r->n_bases];

		ft_registry_release(r, base, NULL);
	}
	free(r->loras);
	free(r->bases);
	pthread_cond_destroy(&r->changed);
	pthread_mutex_destroy(&r->mutex);
	free(r);
}

ft_status
ft_registry_get(ft_registry *r, const char *id, ft_model_ref *ref)
{
	*ref = (ft_model_ref){0};
	pthread_mutex_lock(&r->mutex);
	ref->lora = find_lora(r, id, NULL);
	ref->base = ref->lora ? ref->lora->base : find_base(r, id, NULL);
	if (ref->base)
	{
		ref->base->refs++;
		ref->base->asked = true;
	}
	if (ref->lora)
	{
		ref->lora->refs++;
		ref->lora->asked = true;
	}
	pthread_mutex_unlock(&r->mutex);
	if (!ref->base)
		return ft_fail(FT_NOT_FOUND, "model \"%s\" is not loaded", id);
	return FT_OK;
}

void
ft_registry_put(ft_registry *r, ft_model_ref *ref)
{
	ft_registry_release(r, ref->base, ref->lora);
	*ref = (ft_model_ref){0};
}

/* --- bases --- */

/* Bytes of a base's key/value cache: what is asked for, or what the device and the limit of all
 * models together leave room for. */
static ft_status
cache_bytes(const ft_registry_config *config, const ft_base *base, int64_t *result)
{
	int64_t block = ft_kv_block_bytes(base->model);
	int one_context = ft_kv_blocks_for(base->model->rope_positions);
	int64_t bytes = config->cache_bytes;
	int64_t left = config->memory_bytes - base->model->bytes - ft_decoder_bytes(base->decoder);
	ft_device_info info;

	if (bytes <= 0)
	{
		FT_TRY(config->ops->device_info(config->device, &info));
		bytes = DEFAULT_CACHE_BYTES;
		if (bytes < one_context * block)
			bytes = one_context * block;
		if (bytes > info.memory_free / 4)
			bytes = info.memory_free / 4;
	}
	if (config->memory_bytes > 0 && bytes > left)
	{
		int64_t least = ft_kv_blocks_for(LEAST_TOKENS);

		/* so little that it is not worth having: let the sum be over the limit */
		bytes = left < least * block ? least * block : left;
	}
	*result = bytes;
	return FT_OK;
}

/* Cache and work memory for serving. */
static ft_status
prepare_serving(const ft_registry_config *config, ft_base *base)
{
	int64_t block = ft_kv_block_bytes(base->model);
	int one_context = ft_kv_blocks_for(base->model->rope_positions);
	int64_t bytes;
	int64_t blocks;

	FT_TRY(ft_decoder_create(base->model, config->max_rows, config->max_sequences, &base->decoder));
	FT_TRY(cache_bytes(config, base, &bytes));
	blocks = bytes / block;
	/* more than a full context each is never used */
	if (blocks > (int64_t) one_context * config->max_sequences)
		blocks = (int64_t) one_context * config->max_sequences;
	if (blocks < 1)
		return ft_fail(FT_NO_MEMORY,
					   "a key/value cache of %lld bytes does not hold a block of %lld bytes",
					   (long long) bytes, (long long) block);
	FT_TRY(ft_kv_cache_create(base->model, (int) blocks, &base->cache));
	base->context = base->model->rope_positions;
	if (base->context > blocks * FT_KV_BLOCK)
		base->context = (int) blocks * FT_KV_BLOCK;
	return FT_OK;
}

static ft_status
check_base_digest(const ft_base *base, const char *expected)
{
	if (expected && strcmp(base->digest, expected) != 0)
		return ft_fail(FT_MISMATCH, "model file \"%s\" has digest %s, expected %s", base->path,
					   base->digest, expected);
	return FT_OK;
}

/* Reserve what the weights will take at least: as many bytes as their file has, or two a value. */
static ft_status
reserve_weights(ft_registry *r, ft_base *base)
{
	int64_t bytes = base->file_bytes;

	if (bytes > base->parameters * 2)
		bytes = base->parameters * 2;
	FT_TRY(ft_residency_reserve(r, bytes, false, NULL));
	base->bytes = bytes;
	return FT_OK;
}

/* Now that it is known, hold what the base takes. */
static ft_status
settle_bytes(ft_registry *r, ft_base *base)
{
	int64_t bytes = base->model->bytes + ft_decoder_bytes(base->decoder) +
					base->cache->n_blocks * ft_kv_block_bytes(base->model);

	ft_residency_return(r, base->bytes);
	base->bytes = 0;
	FT_TRY(ft_residency_reserve(r, bytes, true, NULL));
	base->bytes = bytes;
	return FT_OK;
}

static ft_status
fill_base(ft_registry *r, const ft_model_file *file, const char *digest, ft_base *base)
{
	const ft_registry_config *config = &r->config;
	const ft_vocabulary *vocabulary = ft_model_file_vocabulary(file);
	const ft_config *model_config = ft_model_file_config(file);

	if (base->context_requested > model_config->max_positions)
		return ft_fail(FT_INVALID, "context_length %d is over the model's %d",
					   base->context_requested, model_config->max_positions);
	base->parameters = ft_model_file_parameters(file);
	base->file_bytes = ft_model_file_bytes(file);
	base->created = (int64_t) time(NULL);
	base->bos = vocabulary->add_bos ? vocabulary->bos : -1;
	base->longest_token = 1;
	for (size_t i = 0; i < vocabulary->n_tokens; i++)
		if (vocabulary->tokens[i].length > base->longest_token)
			base->longest_token = vocabulary->tokens[i].length;
	FT_TRY(ft_chat_template_find(base->template_name, ft_model_file_template(file),
								 &base->chat_template));
	FT_TRY(copy_text(ft_model_file_prompt_template(file), &base->prompt_template));
	FT_TRY(ft_tokenizer_create(vocabulary, &base->tokenizer));
	FT_TRY(ft_model_file_digest(file, base->digest));
	FT_TRY(check_base_digest(base, digest));
	FT_TRY(reserve_weights(r, base));
	FT_TRY(ft_model_load(file, config->ops, config->device, FT_USE_SERVE, base->context_requested,
						 &base->model));
	FT_TRY(ft_constraint_cache_create(base->tokenizer, (size_t) base->model->config.vocab,
									  &base->constraints));
	FT_TRY(prepare_serving(config, base));
	return settle_bytes(r, base);
}

static ft_status
open_base(ft_registry *r, const char *id, const char *path, const char *template_name,
		  int context_length, const char *digest, ft_base **result)
{
	ft_model_file *file = NULL;
	ft_file_identity after;
	ft_base *base;
	ft_status status;

	FT_TRY(ft_alloc((void **) &base, 1, sizeof *base));
	base->context_requested = context_length;
	status = copy_text(id, &base->id);
	if (status == FT_OK)
		status = copy_text(path, &base->path);
	if (status == FT_OK)
		status = copy_text(template_name, &base->template_name);
	if (status == FT_OK)
		status = identify(path, &base->identity);
	if (status == FT_OK)
		status = ft_model_file_open(path, &file);
	if (status == FT_OK)
		status = fill_base(r, file, digest, base);
	if (status == FT_OK)
		status = identify(path, &after);
	if (status == FT_OK && !same_file(&base->identity, &after))
		status = ft_fail(FT_CORRUPT, "file \"%s\" changed while it was read", path);
	if (file)
		ft_model_file_close(file);
	if (status != FT_OK)
	{
		int64_t bytes = base->bytes;

		free_base(base);
		ft_residency_return(r, bytes);
		return status;
	}
	*result = base;
	return FT_OK;
}

void
ft_registry_take_base(ft_registry *r, const ft_base *base)
{
	for (size_t i = 0; i < r->n_bases; i++)
		if (r->bases[i] == base)
		{
			r->bases[i] = r->bases[--r->n_bases];
			return;
		}
}

void
ft_registry_take_lora(ft_registry *r, const ft_lora_entry *lora)
{
	for (size_t i = 0; i < r->n_loras; i++)
		if (r->loras[i] == lora)
		{
			r->loras[i] = r->loras[--r->n_loras];
			return;
		}
}

ft_lora_entry *
ft_registry_take_lora_over(ft_registry *r, const ft_base *base)
{
	for (size_t i = 0; i < r->n_loras; i++)
		if (r->loras[i]->base == base)
		{
			ft_lora_entry *lora = r->loras[i];

			r->loras[i] = r->loras[--r->n_loras];
			return lora;
		}
	return NULL;
}

/* Register a base, with one reference for the registry and one for the caller. */
static ft_status
register_base(ft_registry *r, ft_base *base)
{
	ft_base *before;
	ft_lora_entry *lora;
	size_t index;
	ft_status status = FT_OK;

	pthread_mutex_lock(&r->mutex);
	before = find_base(r, base->id, &index);
	if (before)
		r->bases[index] = base;
	else
	{
		status = ft_grow((void **) &r->bases, &r->bases_capacity, r->n_bases + 1, sizeof *r->bases);
		if (status == FT_OK)
			r->bases[r->n_bases++] = base;
	}
	if (status == FT_OK)
	{
		base->refs = 2;
		base->used_at = ft_registry_now();
	}
	pthread_mutex_unlock(&r->mutex);
	if (!before)
		return status;
	for (;;)
	{
		pthread_mutex_lock(&r->mutex);
		lora = ft_registry_take_lora_over(r, before);
		pthread_mutex_unlock(&r->mutex);
		if (!lora)
			break;
		ft_registry_release(r, NULL, lora);
	}
	ft_registry_release(r, before, NULL);
	return status;
}

ft_status
ft_registry_load_base(ft_registry *r, const char *id, const char *path, const char *template_name,
					  int context_length, const char *digest, ft_model_ref *ref)
{
	ft_file_identity identity;
	ft_base *base;
	ft_status status;
	bool is_lora;

	*ref = (ft_model_ref){0};
	FT_TRY(identify(path, &identity));
	pthread_mutex_lock(&r->mutex);
	is_lora = find_lora(r, id, NULL) != NULL;
	base = find_base(r, id, NULL);
	if (base && strcmp(base->path, path) == 0 && same_text(base->template_name, template_name) &&
		base->context_requested == context_length && same_file(&base->identity, &identity))
	{
		base->refs++;
		ref->base = base;
	}
	pthread_mutex_unlock(&r->mutex);
	if (is_lora)
		return ft_fail(FT_INVALID, "model \"%s\" is an adapter", id);
	if (ref->base)
	{
		status = check_base_digest(ref->base, digest);
		if (status != FT_OK)
			ft_registry_put(r, ref);
		return status;
	}
	FT_TRY(open_base(r, id, path, template_name, context_length, digest, &base));
	status = register_base(r, base);
	if (status != FT_OK)
	{
		int64_t bytes = base->bytes;

		free_base(base);
		ft_residency_return(r, bytes);
		return status;
	}
	ft_log("log", "model \"%s\" loaded from \"%s\": %lld parameters, context %d, cache %d blocks",
		   id, path, (long long) base->parameters, base->context, base->cache->n_blocks);
	ref->base = base;
	return FT_OK;
}

/* --- adapters --- */

static ft_status
open_lora(ft_registry *r, const char *id, const char *path, ft_base *base,
		  const ft_file_identity *identity, ft_lora_entry **result)
{
	static atomic_uint_fast64_t last;
	ft_lora_entry *lora;
	ft_status status;

	FT_TRY(ft_alloc((void **) &lora, 1, sizeof *lora));
	lora->base = base;
	lora->identity = *identity;
	lora->created = (int64_t) time(NULL);
	lora->serial = atomic_fetch_add(&last, 1) + 1;
	lora->refs = 1;
	lora->used_at = ft_registry_now();
	status = copy_text(id, &lora->id);
	if (status == FT_OK)
		status = copy_text(path, &lora->path);
	if (status == FT_OK)
		status = ft_peft_load(base->model, path, &lora->adapter);
	if (status == FT_OK && base->model->cached == FT_BF16)
		status = ft_adapter_round(lora->adapter);
	if (status == FT_OK)
		status = ft_residency_reserve(r, ft_adapter_bytes(lora->adapter), true, base);
	if (status == FT_OK)
		lora->bytes = ft_adapter_bytes(lora->adapter);
	else
	{
		free_lora(lora);
		return status;
	}
	*result = lora;
	return FT_OK;
}

/* Register an adapter, which takes over the caller's reference to its base. */
static ft_status
register_lora(ft_registry *r, ft_lora_entry *lora)
{
	ft_lora_entry *before = NULL;
	size_t index;
	ft_status status = FT_OK;

	pthread_mutex_lock(&r->mutex);
	before = find_lora(r, lora->id, &index);
	if (before)
		r->loras[index] = lora;
	else
	{
		status = ft_grow((void **) &r->loras, &r->loras_capacity, r->n_loras + 1, sizeof *r->loras);
		if (status == FT_OK)
			r->loras[r->n_loras++] = lora;
	}
	pthread_mutex_unlock(&r->mutex);
	if (before)
		ft_registry_release(r, NULL, before);
	return status;
}

/* What identifies an adapter's weights, after the checks that need no reading. */
static ft_status
check_lora(const char *path, const ft_base *base, const char *base_digest,
		   ft_file_identity *identity)
{
	char weights[FT_PATH_SIZE];

	if (base_digest && strcmp(base_digest, base->digest) != 0)
		return ft_fail(FT_MISMATCH, "base model \"%s\" has digest %s, expected %s", base->id,
					   base->digest, base_digest);
	FT_TRY(ft_path_join(weights, path, "adapter_model.safetensors"));
	return identify(weights, identity);
}

/* Over a base that the caller holds a reference to, which is passed on when the adapter is new. */
static ft_status
load_lora_over(ft_registry *r, const char *id, const char *path, ft_base *base,
			   const char *base_digest, bool *is_new)
{
	ft_file_identity identity;
	ft_lora_entry *lora;
	bool present;
	ft_status status;

	*is_new = false;
	FT_TRY(check_lora(path, base, base_digest, &identity));
	pthread_mutex_lock(&r->mutex);
	lora = find_lora(r, id, NULL);
	present = lora && lora->base == base && strcmp(lora->path, path) == 0 &&
			  same_file(&lora->identity, &identity);
	pthread_mutex_unlock(&r->mutex);
	if (present)
		return FT_OK;
	FT_TRY(open_lora(r, id, path, base, &identity, &lora));
	status = register_lora(r, lora);
	if (status != FT_OK)
	{
		ft_residency_return(r, lora->bytes);
		free_lora(lora);
	}
	*is_new = status == FT_OK;
	return status;
}

ft_status
ft_registry_load_lora(ft_registry *r, const char *id, const char *path, const char *base_id,
					  const char *base_digest)
{
	ft_base *base;
	bool is_base, is_new;
	ft_status status;

	pthread_mutex_lock(&r->mutex);
	base = find_base(r, base_id, NULL);
	is_base = find_base(r, id, NULL) != NULL;
	if (base)
		base->refs++;
	pthread_mutex_unlock(&r->mutex);
	if (!base)
		return ft_fail(FT_NOT_FOUND, "base model \"%s\" is not loaded", base_id);
	if (is_base)
	{
		ft_registry_release(r, base, NULL);
		return ft_fail(FT_INVALID, "model \"%s\" is a base", id);
	}
	status = load_lora_over(r, id, path, base, base_digest, &is_new);
	if (is_new)
		ft_log("log", "adapter \"%s\" loaded from \"%s\" over \"%s\"", id, path, base_id);
	else
		ft_registry_release(r, base, NULL);
	/* "not found" is for the base; a missing file of the adapter must not be taken for it */
	return status == FT_NOT_FOUND ? FT_INVALID : status;
}

ft_status
ft_registry_unload_lora(ft_registry *r, const char *id)
{
	ft_lora_entry *lora;

	pthread_mutex_lock(&r->mutex);
	lora = find_lora(r, id, NULL);
	if (lora)
		ft_registry_take_lora(r, lora);
	pthread_mutex_unlock(&r->mutex);
	if (!lora)
		return ft_fail(FT_NOT_FOUND, "adapter \"%s\" is not loaded", id);
	ft_registry_release(r, NULL, lora);
	return FT_OK;
}

void
ft_registry_memory(ft_registry *r, int64_t *held, int64_t *limit)
{
	pthread_mutex_lock(&r->mutex);
	*held = r->held;
	pthread_mutex_unlock(&r->mutex);
	*limit = r->config.memory_bytes;
}

ft_status
ft_registry_visit(ft_registry *r, ft_registry_visitor visitor, void *context)
{
	ft_status status = FT_OK;

	pthread_mutex_lock(&r->mutex);
	for (size_t i = 0; i < r->n_bases && status == FT_OK; i++)
		status = visitor(context, r->bases[i], NULL);
	for (size_t i = 0; i < r->n_loras && status == FT_OK; i++)
		status = visitor(context, r->loras[i]->base, r->loras[i]);
	pthread_mutex_unlock(&r->mutex);
	return status;
}
