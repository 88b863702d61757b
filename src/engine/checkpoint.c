/*
 * checkpoint.c: saving and finding checkpoints.
 */
#include "checkpoint.h"

#include "files.h"
#include "process.h"
#include "safetensors.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_STATE (1 << 16)
#define PREFIX "checkpoint-"
#define KEPT 2

/* --- names --- */

static ft_status
checkpoint_path(const char *directory, int64_t step, const char *suffix, char path[FT_PATH_SIZE])
{
	char name[64];

	snprintf(name, sizeof name, PREFIX "%lld%s", (long long) step, suffix);
	return ft_path_join(path, directory, name);
}

/* The step in "checkpoint-<step>", or -1. */
static int64_t
step_of(const char *name)
{
	char *end;
	long long step;

	if (strncmp(name, PREFIX, strlen(PREFIX)) != 0 || name[strlen(PREFIX)] < '0' ||
		name[strlen(PREFIX)] > '9')
		return -1;
	errno = 0;
	step = strtoll(name + strlen(PREFIX), &end, 10);
	return *end == '\0' && errno == 0 ? (int64_t) step : -1;
}

static int
newest_first(const void *a, const void *b)
{
	int64_t x = *(const int64_t *) a;
	int64_t y = *(const int64_t *) b;

	return x > y ? -1 : x < y;
}

/* Steps of the checkpoints in a directory, newest first; free *steps. */
static ft_status
list_steps(const char *directory, int64_t **steps, size_t *n)
{
	DIR *d = opendir(directory);
	struct dirent *entry;
	size_t capacity = 0;
	ft_status status = FT_OK;

	*steps = NULL;
	*n = 0;
	if (d == NULL)
		return ft_fail_errno("could not open directory \"%s\"", directory);
	while (status == FT_OK && (entry = readdir(d)) != NULL)
	{
		int64_t step = step_of(entry->d_name);

		if (step < 0)
			continue;
		status = ft_grow((void **) steps, &capacity, *n + 1, sizeof **steps);
		if (status == FT_OK)
			(*steps)[(*n)++] = step;
	}
	closedir(d);
	if (status == FT_OK && *n > 0)
		qsort(*steps, *n, sizeof **steps, newest_first);
	return status;
}

/* --- saving --- */

static json_t *
real_or_null(double value)
{
	return isfinite(value) ? json_real(value) : json_null();
}

/* The digest of a file of the checkpoint, into the state's "files". */
static ft_status
add_digest(json_t *files, const char *directory, const char *name)
{
	char path[FT_PATH_SIZE];
	char hex[FT_DIGEST_HEX];

	FT_TRY(ft_path_join(path, directory, name));
	FT_TRY(ft_digest_file(path, hex));
	json_object_set_new(files, name, json_string(hex));
	return FT_OK;
}

/* Are the best weights kept beside the newest ones? */
static bool
best_beside(const ft_run_state *s)
{
	return s->best.step > 0 && s->best.step != s->step;
}

static size_t
count_digested(const ft_run_state *s)
{
	return best_beside(s) ? 3 : 2;
}

static json_t *
best_json(const ft_best *best)
{
	return json_pack("{s:I, s:o, s:o, s:o, s:I}", "step", (json_int_t) best->step, "training_loss",
					 real_or_null(best->training_loss), "validation_loss",
					 real_or_null(best->validation_loss), "validation_token_accuracy",
					 real_or_null(best->validation_accuracy), "waited", (json_int_t) best->waited);
}

static ft_status
save_state(const char *directory, const char *identity, const ft_run_state *s,
		   const char *const *digested)
{
	char path[FT_PATH_SIZE];
	json_t *files = json_object();
	json_t *json = json_pack("{s:s, s:I, s:I, s:I, s:o}", "identity", identity, "step",
							 (json_int_t) s->step, "tokens", (json_int_t) s->tokens,
							 "trained_tokens", (json_int_t) s->trained, "files", files);
	char *text = NULL;
	ft_status status = FT_OK;

	json_object_set_new(json, "loss", real_or_null(s->loss));
	json_object_set_new(json, "weight", real_or_null(s->weight));
	json_object_set_new(json, "training_loss", real_or_null(s->training_loss));
	json_object_set_new(json, "validation_loss", real_or_null(s->validation_loss));
	json_object_set_new(json, "validation_token_accuracy", real_or_null(s->validation_accuracy));
	json_object_set_new(json, "elapsed", real_or_null(s->elapsed));
	if (s->best.step > 0)
		json_object_set_new(json, "best", best_json(&s->best));
	for (size_t i = 0; status == FT_OK && i < count_digested(s); i++)
		status = add_digest(files, directory, digested[i]);
	/* 17 digits: what is read back is the same number */
	if (status == FT_OK && (text = json_dumps(json, JSON_INDENT(2))) == NULL)
		status = ft_fail(FT_NO_MEMORY, "out of memory");
	json_decref(json);
	if (status == FT_OK)
		status = ft_path_join(path, directory, "state.json");
	if (status == FT_OK)
		status = ft_replace_file(path, text, strlen(text));
	free(text);
	return status;
}

static ft_status
save_into(const char *directory, const char *identity, const ft_run_state *state,
		  const ft_checkpoint_contents *contents)
{
	if (mkdir(directory, 0700) < 0)
		return ft_fail_errno("could not create directory \"%s\"", directory);
	FT_TRY(contents->save(contents->context, directory, best_beside(state)));
	return save_state(directory, identity, state, contents->files);
}

/* Remove these checkpoints, of which the first `kept` stay. */
static ft_status
remove_old(const char *directory, const int64_t *steps, size_t n, size_t kept)
{
	ft_status status = FT_OK;

	for (size_t i = kept; status == FT_OK && i < n; i++)
	{
		char path[FT_PATH_SIZE];
		char doomed[FT_PATH_SIZE];

		/* renamed first: a half-removed directory must not look like a checkpoint */
		status = checkpoint_path(directory, steps[i], "", path);
		if (status == FT_OK)
			status = checkpoint_path(directory, steps[i], ".tmp", doomed);
		if (status == FT_OK)
			status = ft_rename_durably(path, doomed);
		if (status == FT_OK)
			status = ft_remove_tree(doomed);
	}
	return status;
}

ft_status
ft_checkpoint_save_contents(const char *directory, const char *identity, const ft_run_state *state,
							const ft_checkpoint_contents *contents)
{
	char path[FT_PATH_SIZE];
	char temporary[FT_PATH_SIZE];
	int64_t *steps;
	size_t n;
	ft_status status;

	FT_TRY(checkpoint_path(directory, state->step, "", path));
	FT_TRY(checkpoint_path(directory, state->step, ".tmp", temporary));
	FT_TRY(ft_remove_tree(temporary));
	status = save_into(temporary, identity, state, contents);
	/* one of this step that is there already did not pass as whole, or the run would not be here */
	if (status == FT_OK)
		status = ft_remove_tree(path);
	if (status == FT_OK)
		status = ft_rename_durably(temporary, path);
	if (status != FT_OK)
	{
		char message[512];

		snprintf(message, sizeof message, "%s", ft_error_message());
		ft_remove_tree(temporary);
		return ft_fail(status, "%s", message);
	}
	status = list_steps(directory, &steps, &n);
	if (status == FT_OK)
		status = remove_old(directory, steps, n, KEPT);
	free(steps);
	return status;
}

/* --- loading --- */

static ft_status
check_digest(const json_t *files, const char *directory, const char *name)
{
	const char *expected = json_string_value(json_object_get(files, name));
	char path[FT_PATH_SIZE];
	char hex[FT_DIGEST_HEX];

	FT_TRY(ft_path_join(path, directory, name));
	FT_TRY(ft_digest_file(path, hex));
	if (expected == NULL || strcmp(expected, hex) != 0)
		return ft_fail(FT_CORRUPT, "\"%s\" is not the file that was saved", path);
	return FT_OK;
}

static double
real_or_nan(const json_t *object, const char *key)
{
	const json_t *value = json_object_get(object, key);

	return json_is_number(value) ? json_number_value(value) : NAN;
}

static void
read_best(const json_t *json, ft_best *best)
{
	*best = (ft_best){0};
	if (json == NULL)
		return;
	best->step = json_integer_value(json_object_get(json, "step"));
	best->training_loss = real_or_nan(json, "training_loss");
	best->validation_loss = real_or_nan(json, "validation_loss");
	best->validation_accuracy = real_or_nan(json, "validation_token_accuracy");
	best->waited = json_integer_value(json_object_get(json, "waited"));
}

static ft_status
read_state(const json_t *json, const char *directory, const char *identity,
		   const char *const *digested, ft_run_state *s)
{
	const char *whose = json_string_value(json_object_get(json, "identity"));

	if (whose == NULL)
		return ft_fail(FT_CORRUPT, "\"%s/state.json\" has no identity", directory);
	if (strcmp(whose, identity) != 0)
		return ft_hint(ft_fail(FT_MISMATCH, "checkpoint \"%s\" belongs to another run", directory),
					   "The base model's file, the data or the options have changed.");
	s->step = json_integer_value(json_object_get(json, "step"));
	s->tokens = json_integer_value(json_object_get(json, "tokens"));
	s->trained = json_integer_value(json_object_get(json, "trained_tokens"));
	s->loss = json_number_value(json_object_get(json, "loss"));
	s->weight = json_number_value(json_object_get(json, "weight"));
	s->training_loss = real_or_nan(json, "training_loss");
	s->validation_loss = real_or_nan(json, "validation_loss");
	s->validation_accuracy = real_or_nan(json, "validation_token_accuracy");
	s->elapsed = json_number_value(json_object_get(json, "elapsed"));
	read_best(json_object_get(json, "best"), &s->best);
	for (size_t i = 0; i < count_digested(s); i++)
		FT_TRY(check_digest(json_object_get(json, "files"), directory, digested[i]));
	return FT_OK;
}

static ft_status
load_state(const char *directory, const char *identity, const char *const *digested,
		   ft_run_state *state)
{
	char path[FT_PATH_SIZE];
	ft_text text = {0};
	json_t *json = NULL;
	ft_status status;

	FT_TRY(ft_path_join(path, directory, "state.json"));
	status = ft_read_file(path, MAX_STATE, &text);
	if (status == FT_OK &&
		(json = json_loadb(text.data, text.length, JSON_REJECT_DUPLICATES, NULL)) == NULL)
		status = ft_fail(FT_CORRUPT, "\"%s\" is not valid JSON", path);
	if (status == FT_OK)
		status = read_state(json, directory, identity, digested, state);
	json_decref(json);
	ft_text_free(&text);
	return status;
}

static ft_status
load_from(const char *directory, const char *identity, ft_run_state *state,
		  const ft_checkpoint_contents *contents)
{
	FT_TRY(load_state(directory, identity, contents->files, state));
	return contents->load(contents->context, directory, state, best_beside(state));
}

ft_status
ft_checkpoint_load_contents(const char *directory, const char *identity, ft_run_state *state,
							const ft_checkpoint_contents *contents, bool *found)
{
	int64_t *steps;
	size_t n;
	ft_status status = list_steps(directory, &steps, &n);

	*found = false;
	for (size_t i = 0; status == FT_OK && i < n && !*found; i++)
	{
		char path[FT_PATH_SIZE];

		status = checkpoint_path(directory, steps[i], "", path);
		if (status != FT_OK)
			break;
		status = load_from(path, identity, state, contents);
		*found = status == FT_OK;
		if (status == FT_CORRUPT || status == FT_NOT_FOUND)
		{
			ft_log("warning", "checkpoint at step %lld is passed over: %s", (long long) steps[i],
				   ft_error_message());
			status = FT_OK;
		}
		/* a run that was killed in between may have left one more than it keeps */
		else if (status == FT_OK)
			status = remove_old(directory, steps, n, i + KEPT);
	}
	free(steps);
	if (status == FT_OK && !*found)
		*state = (ft_run_state){
			.training_loss = NAN, .validation_loss = NAN, .validation_accuracy = NAN};
	return status;
}

ft_status
ft_checkpoint_clean(const char *directory)
{
	DIR *d = opendir(directory);
	struct dirent *entry;
	ft_status status = FT_OK;

	if (d == NULL)
		return ft_fail_errno("could not open directory \"%s\"", directory);
	while (status == FT_OK && (entry = readdir(d)) != NULL)
	{
		size_t n = strlen(entry->d_name);
		char path[FT_PATH_SIZE];

		if (n < 4 || strcmp(entry->d_name + n - 4, ".tmp") != 0)
			continue;
		status = ft_path_join(path, directory, entry->d_name);
		if (status == FT_OK)
			status = ft_remove_tree(path);
	}
	closedir(d);
	return status;
}

/* --- an adapter --- */

static const char *const adapter_files[3] = {
	"adapter/adapter_model.safetensors", "optimizer.safetensors", "best/adapter_model.safetensors"};

typedef struct adapter_saving
{
	const ft_adapter *adapter;
	const ft_adapter *best;
	const ft_config *config;
	const char *base_name;
	const ft_moments *moments;
} adapter_saving;

typedef struct adapter_loading
{
	const ft_model *model;
	ft_adapter **adapter;
	ft_adapter **best;
	ft_moments *moments;
} adapter_loading;

static ft_status
save_adapter(void *context, const char *directory, bool beside)
{
	const adapter_saving *from = context;
	const ft_moments *moments = from->moments;
	char path[FT_PATH_SIZE];
	const ft_safetensor_out tensors[2] = {{"exp_avg", -1, moments->n, moments->m},
										  {"exp_avg_sq", -1, moments->n, moments->v}};

	FT_TRY(ft_path_join(path, directory, "adapter"));
	FT_TRY(ft_peft_save(from->adapter, from->config, from->base_name, path));
	if (beside)
	{
		FT_TRY(ft_path_join(path, directory, "best"));
		FT_TRY(ft_peft_save(from->best, from->config, from->base_name, path));
	}
	FT_TRY(ft_path_join(path, directory, "optimizer.safetensors"));
	return ft_safetensors_write(path, tensors, 2);
}

ft_status
ft_checkpoint_save(const char *directory, const char *identity, const ft_run_state *state,
				   const ft_adapter *adapter, const ft_adapter *best, const ft_config *config,
				   const char *base_name, const ft_moments *moments)
{
	adapter_saving from = {adapter, best, config, base_name, moments};
	ft_checkpoint_contents contents = {.save = save_adapter, .context = &from};

	memcpy(contents.files, adapter_files, sizeof adapter_files);
	return ft_checkpoint_save_contents(directory, identity, state, &contents);
}

static ft_status
load_moments(const char *directory, ft_moments *moments)
{
	char path[FT_PATH_SIZE];
	ft_safetensors *file;
	ft_status status = FT_OK;
	const char *const names[2] = {"exp_avg", "exp_avg_sq"};
	float *const to[2] = {moments->m, moments->v};

	FT_TRY(ft_path_join(path, directory, "optimizer.safetensors"));
	FT_TRY(ft_safetensors_open(path, &file));
	for (int i = 0; i < 2 && status == FT_OK; i++)
	{
		const ft_safetensor *tensor = ft_safetensors_find(file, names[i]);

		if (tensor == NULL)
			status = ft_fail(FT_CORRUPT, "\"%s\" has no \"%s\"", path, names[i]);
		else
			status = ft_safetensors_read_f32(file, tensor, to[i], moments->n);
	}
	ft_safetensors_close(file);
	return status;
}

/* An adapter of as many values as there are moments. */
static ft_status
load_adapter(const char *directory, const char *name, const ft_model *model,
			 const ft_moments *moments, ft_adapter **adapter)
{
	char path[FT_PATH_SIZE];
	ft_status status;

	FT_TRY(ft_path_join(path, directory, name));
	FT_TRY(ft_peft_load(model, path, adapter));
	if ((*adapter)->n == moments->n)
		return FT_OK;
	status = ft_fail(FT_CORRUPT, "\"%s\" has %lld values, expected %lld", path,
					 (long long) (*adapter)->n, (long long) moments->n);
	ft_adapter_free(*adapter);
	*adapter = NULL;
	return status;
}

static ft_status
load_adapters(void *context, const char *directory, const ft_run_state *state, bool beside)
{
	const adapter_loading *to = context;
	ft_status status;

	FT_TRY(load_moments(directory, to->moments));
	FT_TRY(load_adapter(directory, "adapter", to->model, to->moments, to->adapter));
	if (state->best.step == 0)
		return FT_OK;
	status = load_adapter(directory, beside ? "best" : "adapter", to->model, to->moments, to->best);
	if (status != FT_OK)
	{
		ft_adapter_free(*to->adapter);
		*to->adapter = NULL;
	}
	return status;
}

ft_status
ft_checkpoint_load(const char *directory, const char *identity, const ft_model *model,
				   ft_run_state *state, ft_adapter **adapter, ft_adapter **best,
				   ft_moments *moments)
{
	adapter_loading to = {model, adapter, best, moments};
	ft_checkpoint_contents contents = {.load = load_adapters, .context = &to};
	bool found;
	ft_status status;

	*adapter = NULL;
	*best = NULL;
	memcpy(contents.files, adapter_files, sizeof adapter_files);
	status = ft_checkpoint_load_contents(directory, identity, state, &contents, &found);
	if (status != FT_OK)
	{
		ft_adapter_free(*adapter);
		ft_adapter_free(*best);
		*adapter = *best = NULL;
	}
	return status;
}
