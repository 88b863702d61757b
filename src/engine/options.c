/*
 * options.c: the options of a training run: reading, checking, and values for
 * those that nobody set.
 */
#include "adapter.h"
#include "job_file.h"

#include <math.h>
#include <string.h>

#define ALL_TARGETS ((1u << FT_TARGET_COUNT) - 1)
#define MAX_EPOCHS 50
#define FULL_LEARNING_RATE 2e-5 /* what TRL and others begin with */
/* Of the rates that are customary for LoRA (5e-6 to 5e-5) the largest: on SmolLM2-135M with 72
 * pairs of pg_settings (right and wrong category) an epoch took the validation loss from 0.693 to
 * 0.647, with 2e-4 only to 0.682. */
#define DPO_LEARNING_RATE 5e-5

/* --- reading --- */

/* Options that are the caller's own business. */
static const char *const callers[] = {"priority", "storage"};

static const char *const scheduler_names[] = {
	[FT_COSINE] = "cosine", [FT_LINEAR] = "linear", [FT_CONSTANT] = "constant"};

static bool
is_unset(const json_t *value)
{
	return value == NULL || json_is_null(value) ||
		   (json_is_string(value) && strcmp(json_string_value(value), "auto") == 0);
}

static ft_status
read_integer(const char *key, const json_t *value, int64_t low, int64_t high, int64_t *to)
{
	if (is_unset(value))
		return FT_OK;
	if (!json_is_integer(value) || json_integer_value(value) < low ||
		json_integer_value(value) > high)
		return ft_fail(FT_INVALID, "option \"%s\" is no integer from %lld to %lld", key,
					   (long long) low, (long long) high);
	*to = json_integer_value(value);
	return FT_OK;
}

static ft_status
read_int(const char *key, const json_t *value, int low, int high, int *to)
{
	int64_t wide = *to;

	FT_TRY(read_integer(key, value, low, high, &wide));
	*to = (int) wide;
	return FT_OK;
}

static ft_status
read_real(const char *key, const json_t *value, double low, double high, double *to)
{
	double number = json_number_value(value);

	if (is_unset(value))
		return FT_OK;
	if (!json_is_number(value) || !(number >= low && number <= high))
		return ft_fail(FT_INVALID, "option \"%s\" is no number from %g to %g", key, low, high);
	*to = number;
	return FT_OK;
}

static ft_status
read_flag(const char *key, const json_t *value, bool *to)
{
	if (is_unset(value))
		return FT_OK;
	if (!json_is_boolean(value))
		return ft_fail(FT_INVALID, "option \"%s\" is neither true nor false", key);
	*to = json_is_true(value);
	return FT_OK;
}

static ft_status
read_method(const json_t *value, ft_options *o)
{
	const char *name;

	if (is_unset(value))
		return FT_OK;
	if (!json_is_string(value))
		return ft_fail(FT_INVALID, "option \"method\" is no string");
	name = json_string_value(value);
	o->qlora = strcmp(name, "qlora") == 0;
	o->full = strcmp(name, "full") == 0;
	o->dpo = strcmp(name, "dpo") == 0;
	if (!o->qlora && !o->full && !o->dpo && strcmp(name, "lora") != 0)
		return ft_hint(ft_fail(FT_UNSUPPORTED, "method \"%.40s\" is not supported", name),
					   "The supported methods are lora, qlora, full and dpo.");
	return FT_OK;
}

static const char *
method_name(const ft_options *o)
{
	return o->qlora ? "qlora" : o->full ? "full" : o->dpo ? "dpo" : "lora";
}

static ft_status
read_scheduler(const json_t *value, ft_scheduler *to)
{
	if (is_unset(value))
		return FT_OK;
	for (int i = FT_COSINE; i <= FT_CONSTANT; i++)
	{
		if (json_is_string(value) && strcmp(json_string_value(value), scheduler_names[i]) == 0)
		{
			*to = (ft_scheduler) i;
			return FT_OK;
		}
	}
	return ft_fail(FT_INVALID, "option \"lr_scheduler\" is none of cosine, linear, constant");
}

static ft_status
read_target_modules(const json_t *value, ft_options *o)
{
	unsigned targets = 0;
	size_t i;
	json_t *item;

	if (is_unset(value))
		return FT_OK;
	if (json_is_string(value) && strcmp(json_string_value(value), "all-linear") == 0)
	{
		o->lora_target_modules = ALL_TARGETS;
		o->all_linear = true;
		return FT_OK;
	}
	if (!json_is_array(value) || json_array_size(value) == 0)
		return ft_fail(FT_INVALID,
					   "option \"lora_target_modules\" is neither \"all-linear\" nor a list");
	json_array_foreach ((json_t *) value, i, item)
	{
		int t = 0;

		while (t < FT_TARGET_COUNT &&
			   !(json_is_string(item) &&
				 strcmp(json_string_value(item), ft_target_name((ft_target) t)) == 0))
			t++;
		if (t == FT_TARGET_COUNT)
			return ft_hint(ft_fail(FT_INVALID,
								   "option \"lora_target_modules\" names an unknown module at %zu",
								   i + 1),
						   "The modules are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj "
						   "and down_proj.");
		targets |= 1u << t;
	}
	o->lora_target_modules = targets;
	o->all_linear = false;
	return FT_OK;
}

static bool
in_list(const char *key, const char *const *list, size_t n)
{
	for (size_t i = 0; i < n; i++)
	{
		if (strcmp(key, list[i]) == 0)
			return true;
	}
	return false;
}

static ft_status
read_seed(const json_t *value, uint64_t *seed)
{
	int64_t number = (int64_t) *seed;

	FT_TRY(read_integer("seed", value, 0, INT64_MAX, &number));
	*seed = (uint64_t) number;
	return FT_OK;
}

static ft_status
read_dropout(const json_t *value, double *dropout)
{
	FT_TRY(read_real("lora_dropout", value, 0, 1, dropout));
	if (*dropout == 1)
		return ft_fail(FT_INVALID, "option \"lora_dropout\" is 1, which leaves nothing");
	return FT_OK;
}

static ft_status
read_template(const json_t *value, char to[FT_PROMPT_TEMPLATE_SIZE])
{
	if (value == NULL || json_is_null(value))
		return FT_OK;
	if (!json_is_string(value))
		return ft_fail(FT_INVALID, "option \"prompt_template\" is no string");
	FT_TRY(ft_prompt_template_check(json_string_value(value)));
	strcpy(to, json_string_value(value));
	return FT_OK;
}

static ft_status
read_option(const char *key, const json_t *value, ft_options *o)
{
#define IS(name) (strcmp(key, name) == 0)
	if (IS("max_epochs"))
		return read_int(key, value, 1, MAX_EPOCHS, &o->max_epochs);
	if (IS("max_steps"))
		return read_integer(key, value, 0, INT32_MAX, &o->max_steps);
	if (IS("method"))
		return read_method(value, o);
	if (IS("lora_r"))
		return read_int(key, value, 1, 1024, &o->lora_r);
	if (IS("lora_alpha"))
		return read_real(key, value, 1e-6, 1e6, &o->lora_alpha);
	if (IS("lora_dropout"))
		return read_dropout(value, &o->lora_dropout);
	if (IS("lora_target_modules"))
		return read_target_modules(value, o);
	if (IS("use_rslora"))
		return read_flag(key, value, &o->use_rslora);
	if (IS("learning_rate"))
		return read_real(key, value, 0, 1, &o->learning_rate);
	if (IS("lr_scheduler"))
		return read_scheduler(value, &o->lr_scheduler);
	if (IS("min_lr_ratio"))
		return read_real(key, value, 0, 1, &o->min_lr_ratio);
	if (IS("warmup_ratio"))
		return read_real(key, value, 0, 1, &o->warmup_ratio);
	if (IS("weight_decay"))
		return read_real(key, value, 0, 10, &o->weight_decay);
	if (IS("max_grad_norm"))
		return read_real(key, value, 0, 1e9, &o->max_grad_norm);
	if (IS("batch_size"))
		return read_integer(key, value, 1, INT32_MAX, &o->batch_size);
	if (IS("gradient_accumulation_steps"))
		return read_int(key, value, 1, 4096, &o->gradient_accumulation_steps);
	if (IS("max_seq_length"))
		return read_int(key, value, 16, 1 << 20, &o->max_seq_length);
	if (IS("packing"))
		return read_flag(key, value, &o->packing);
	if (IS("train_on_inputs"))
		return read_flag(key, value, &o->train_on_inputs);
	if (IS("prompt_template"))
		return read_template(value, o->prompt_template);
	if (IS("n_evals"))
		return read_int(key, value, 0, 10000, &o->n_evals);
	if (IS("n_checkpoints"))
		return read_int(key, value, 1, 10000, &o->n_checkpoints);
	if (IS("early_stopping_patience"))
		return read_int(key, value, 1, 10000, &o->early_stopping_patience);
	if (IS("validation_fraction"))
		return read_real(key, value, 0, 0.9, &o->validation_fraction);
	if (IS("seed"))
		return read_seed(value, &o->seed);
	if (IS("dpo_beta"))
		return read_real(key, value, 1e-6, 100, &o->dpo_beta);
#undef IS
	if (in_list(key, callers, sizeof callers / sizeof callers[0]))
		return FT_OK;
	return ft_fail(FT_INVALID, "unknown option \"%.60s\"", key);
}

/* Remember which of the adapter's own options were given. */
static void
note_given(const char *key, const json_t *value, ft_options *o)
{
	static const struct
	{
		const char *key;
		unsigned bit;
	} own[] = {{"lora_r", FT_GIVEN_RANK},
			   {"lora_alpha", FT_GIVEN_ALPHA},
			   {"lora_target_modules", FT_GIVEN_TARGETS},
			   {"use_rslora", FT_GIVEN_RSLORA}};

	for (size_t i = 0; i < sizeof own / sizeof own[0]; i++)
	{
		if (!is_unset(value) && strcmp(key, own[i].key) == 0)
			o->given |= own[i].bit;
	}
}

/* An option of adapters says nothing where there is none. */
static ft_status
check_full(const json_t *object)
{
	const char *key;
	json_t *value;

	json_object_foreach ((json_t *) object, key, value)
	{
		bool own = strncmp(key, "lora_", 5) == 0 || strcmp(key, "use_rslora") == 0 ||
				   strcmp(key, "prompt_template") == 0;

		if (own && !is_unset(value))
			return ft_fail(FT_INVALID,
						   "option \"%s\" does not go with method full, which has no "
						   "adapter",
						   key);
	}
	return FT_OK;
}

/* What goes with method dpo, and what does not. */
static ft_status
check_dpo(const ft_options *o)
{
	if (!o->dpo && o->dpo_beta != 0)
		return ft_fail(FT_INVALID, "option \"dpo_beta\" is of method dpo only");
	if (o->dpo && o->train_on_inputs)
		return ft_fail(FT_INVALID, "option \"train_on_inputs\" does not go with method dpo, which "
								   "compares answers");
	return FT_OK;
}

ft_status
ft_options_read(const json_t *object, ft_options *options)
{
	const char *key;
	json_t *value;

	*options = (ft_options){.lora_alpha = NAN,
							.lora_target_modules = ALL_TARGETS,
							.all_linear = true,
							.learning_rate = NAN,
							.warmup_ratio = 0.03,
							.max_grad_norm = 1.0,
							.packing = true,
							.validation_fraction = 0.1,
							.seed = 42};
	if (object == NULL || json_is_null(object))
		return FT_OK;
	if (!json_is_object(object))
		return ft_fail(FT_INVALID, "\"options\" is no object");
	json_object_foreach ((json_t *) object, key, value)
	{
		FT_TRY(read_option(key, value, options));
		note_given(key, value, options);
	}
	if (options->full)
		FT_TRY(check_full(object));
	return check_dpo(options);
}

/* --- values for what is unset --- */

int
ft_options_max_length(const ft_options *options, const ft_config *config, int context_length)
{
	int context = config->max_positions;

	if (context_length > 0 && context_length < context)
		context = context_length;
	if (options->max_seq_length > 0)
		return options->max_seq_length < context ? options->max_seq_length : context;
	return context < 2048 ? context : 2048;
}

static int64_t
clamp(int64_t value, int64_t low, int64_t high)
{
	return value < low ? low : value > high ? high : value;
}

/* At least 64 steps an epoch where the table is large enough for that, up to what fills a device.
 */
static int64_t
auto_batch_size(const ft_data_size *data)
{
	int64_t batch = 256;

	while (batch < 16384 && batch * 2 <= data->tokens / 64)
		batch *= 2;
	return batch;
}

/* A small table is seen more often: enough epochs for 256 steps, at most 8; of preferences at most
 * 3, as a model that has them does not stop there. */
static int
auto_epochs(const ft_options *options, const ft_data_size *data)
{
	int64_t steps = clamp(data->tokens / options->batch_size, 1, data->documents);

	return (int) clamp((256 + steps - 1) / steps, 1, options->dpo ? 3 : 8);
}

/* Adapters of wide models take smaller steps. */
static double
auto_learning_rate(const ft_config *config)
{
	return config->hidden < 1024 ? 1e-3 : config->hidden < 3072 ? 5e-4 : 2e-4;
}

void
ft_options_resolve(ft_options *o, const ft_config *config, int context_length,
				   const ft_data_size *data)
{
	o->max_seq_length = ft_options_max_length(o, config, context_length);
	if (o->all_linear)
		o->lora_target_modules = ft_target_all(config);
	if (o->lora_r == 0)
		o->lora_r = 16;
	if (isnan(o->lora_alpha))
		o->lora_alpha = 2.0 * o->lora_r;
	if (isnan(o->learning_rate))
		o->learning_rate = o->full  ? FULL_LEARNING_RATE
						   : o->dpo ? DPO_LEARNING_RATE
									: auto_learning_rate(config);
	if (o->dpo && o->dpo_beta == 0)
		o->dpo_beta = 0.1;
	if (o->batch_size == 0)
		o->batch_size = auto_batch_size(data);
	if (o->max_epochs == 0 && o->max_steps > 0)
		o->max_epochs = MAX_EPOCHS;
	else if (o->max_epochs == 0)
		o->max_epochs = auto_epochs(o, data);
}

ft_status
ft_options_adopt_template(ft_options *o, const char *prompt_template)
{
	const char *other = prompt_template != NULL ? prompt_template : "";

	if (o->prompt_template[0] != '\0' && strcmp(o->prompt_template, other) != 0)
		return ft_hint(ft_fail(FT_INVALID, "option \"prompt_template\" is not that of the adapter "
										   "to continue from"),
					   "Leave the option out, or begin a new adapter.");
	snprintf(o->prompt_template, sizeof o->prompt_template, "%s", other);
	return FT_OK;
}

ft_status
ft_options_adopt(ft_options *o, const ft_adapter *a)
{
	static const char hint[] = "Leave the option out, or begin a new adapter.";

	if ((o->given & FT_GIVEN_RANK) && o->lora_r != a->rank)
		return ft_hint(ft_fail(FT_INVALID,
							   "option \"lora_r\" is %d, but the adapter to continue "
							   "from has %d",
							   o->lora_r, a->rank),
					   hint);
	if ((o->given & FT_GIVEN_ALPHA) && (float) o->lora_alpha != a->alpha)
		return ft_hint(ft_fail(FT_INVALID,
							   "option \"lora_alpha\" is %g, but the adapter to "
							   "continue from has %g",
							   o->lora_alpha, (double) a->alpha),
					   hint);
	if ((o->given & FT_GIVEN_RSLORA) && o->use_rslora != a->use_rslora)
		return ft_hint(ft_fail(FT_INVALID, "option \"use_rslora\" is not that of the adapter to "
										   "continue from"),
					   hint);
	if ((o->given & FT_GIVEN_TARGETS) && o->lora_target_modules != a->targets)
		return ft_hint(ft_fail(FT_INVALID, "option \"lora_target_modules\" is not that of the "
										   "adapter to continue from"),
					   hint);
	o->lora_r = a->rank;
	o->lora_alpha = (double) a->alpha;
	o->use_rslora = a->use_rslora;
	o->lora_target_modules = a->targets;
	return FT_OK;
}

/* --- as JSON --- */

static json_t *
target_names(unsigned targets)
{
	json_t *list = json_array();

	for (int t = 0; t < FT_TARGET_COUNT; t++)
	{
		if (targets & (1u << t))
			json_array_append_new(list, json_string(ft_target_name((ft_target) t)));
	}
	return list;
}

static void
set_adapter_options(json_t *json, const ft_options *o)
{
	json_object_set_new(json, "lora_r", json_integer(o->lora_r));
	json_object_set_new(json, "lora_alpha", json_real(o->lora_alpha));
	json_object_set_new(json, "lora_dropout", json_real(o->lora_dropout));
	json_object_set_new(json, "lora_target_modules", target_names(o->lora_target_modules));
	json_object_set_new(json, "use_rslora", json_boolean(o->use_rslora));
}

json_t *
ft_options_json(const ft_options *o)
{
	json_t *json = json_object();

	json_object_set_new(json, "method", json_string(method_name(o)));
	if (o->dpo)
		json_object_set_new(json, "dpo_beta", json_real(o->dpo_beta));
	json_object_set_new(json, "max_epochs", json_integer(o->max_epochs));
	json_object_set_new(json, "max_steps", json_integer(o->max_steps));
	if (!o->full)
		set_adapter_options(json, o);
	json_object_set_new(json, "learning_rate", json_real(o->learning_rate));
	json_object_set_new(json, "lr_scheduler", json_string(scheduler_names[o->lr_scheduler]));
	json_object_set_new(json, "min_lr_ratio", json_real(o->min_lr_ratio));
	json_object_set_new(json, "warmup_ratio", json_real(o->warmup_ratio));
	json_object_set_new(json, "weight_decay", json_real(o->weight_decay));
	json_object_set_new(json, "max_grad_norm", json_real(o->max_grad_norm));
	json_object_set_new(json, "batch_size", json_integer(o->batch_size));
	if (o->gradient_accumulation_steps > 0)
		json_object_set_new(json, "gradient_accumulation_steps",
							json_integer(o->gradient_accumulation_steps));
	json_object_set_new(json, "max_seq_length", json_integer(o->max_seq_length));
	json_object_set_new(json, "packing", json_boolean(o->packing));
	json_object_set_new(json, "train_on_inputs", json_boolean(o->train_on_inputs));
	if (o->prompt_template[0] != '\0')
		json_object_set_new(json, "prompt_template", json_string(o->prompt_template));
	json_object_set_new(json, "n_evals", json_integer(o->n_evals));
	if (o->n_checkpoints > 0)
		json_object_set_new(json, "n_checkpoints", json_integer(o->n_checkpoints));
	if (o->early_stopping_patience > 0)
		json_object_set_new(json, "early_stopping_patience",
							json_integer(o->early_stopping_patience));
	json_object_set_new(json, "validation_fraction", json_real(o->validation_fraction));
	json_object_set_new(json, "seed", json_integer((json_int_t) o->seed));
	return json;
}
