/*
 * sampler.c: random numbers, penalties, ends and text of one request's answer.
 */
#include "sampler.h"

#include "random.h"

#include <stdlib.h>
#include <string.h>

void
ft_sampling_default(ft_sampling *sampling)
{
	*sampling =
		(ft_sampling){.top_p = 1, .repetition_penalty = 1, .max_tokens = FT_DEFAULT_MAX_TOKENS};
}

void
ft_sampling_free(ft_sampling *sampling)
{
	for (size_t i = 0; i < sampling->n_stops; i++)
		ft_text_free(&sampling->stops[i]);
	free(sampling->stops);
	sampling->stops = NULL;
	sampling->n_stops = 0;
}

const char *
ft_finish_name(ft_finish finish)
{
	switch (finish)
	{
		case FT_FINISH_STOP:
			return "stop";
		case FT_FINISH_LENGTH:
			return "length";
		case FT_FINISH_NONE:
			break;
	}
	return NULL;
}

void
ft_generation_start(ft_generation *generation, const ft_tokenizer *tokenizer,
					const ft_config *config, const ft_sampling *sampling, ft_constraint *constraint,
					int limit)
{
	*generation = (ft_generation){
		.tokenizer = tokenizer,
		.config = config,
		.sampling = sampling,
		.constraint = constraint,
		.logprobs.n_top = sampling->top_logprobs,
		.limit = limit,
	};
}

void
ft_generation_free(ft_generation *generation)
{
	ft_ids_free(&generation->ids);
	ft_text_free(&generation->text);
	ft_logprobs_free(&generation->logprobs);
	free(generation->seen);
	generation->seen = NULL;
	generation->n_seen = generation->seen_capacity = 0;
}

void
ft_generation_end(ft_generation *generation)
{
	ft_match_end(&generation->match);
}

/* --- penalties --- */

bool
ft_generation_has_penalties(const ft_generation *generation)
{
	const ft_sampling *s = generation->sampling;

	return s->presence_penalty != 0 || s->frequency_penalty != 0 || s->repetition_penalty != 1;
}

static int
compare_ids(const void *a, const void *b)
{
	int32_t x = *(const int32_t *) a, y = *(const int32_t *) b;

	return (x > y) - (x < y);
}

ft_status
ft_generation_read_prompt(ft_generation *generation, const int32_t *ids, size_t n)
{
	int32_t *sorted;

	if (generation->sampling->repetition_penalty == 1 || n == 0)
		return FT_OK;
	FT_TRY(ft_alloc((void **) &sorted, n, sizeof *sorted));
	memcpy(sorted, ids, n * sizeof *sorted);
	qsort(sorted, n, sizeof *sorted, compare_ids);
	if (ft_alloc((void **) &generation->seen, n, sizeof *generation->seen) != FT_OK)
	{
		free(sorted);
		return FT_NO_MEMORY;
	}
	generation->seen_capacity = n;
	for (size_t i = 0; i < n; i++)
		if (i == 0 || sorted[i] != sorted[i - 1])
			generation->seen[generation->n_seen++] = (ft_seen_token){.id = sorted[i]};
	free(sorted);
	return FT_OK;
}

/* Where a token stands among those seen, or would. */
static size_t
seen_position(const ft_generation *generation, int32_t id)
{
	size_t low = 0, high = generation->n_seen;

	while (low < high)
	{
		size_t middle = low + (high - low) / 2;

		if (generation->seen[middle].id < id)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* Take note of a token of the answer. */
static ft_status
note_answered(ft_generation *generation, int32_t id)
{
	size_t at = seen_position(generation, id);

	if (at == generation->n_seen || generation->seen[at].id != id)
	{
		if (generation->n_seen == generation->seen_capacity)
		{
			size_t capacity = generation->seen_capacity * 2 + 64;
			ft_seen_token *grown = realloc(generation->seen, capacity * sizeof *grown);

			if (!grown)
				return ft_fail(FT_NO_MEMORY, "out of memory");
			generation->seen = grown;
			generation->seen_capacity = capacity;
		}
		memmove(&generation->seen[at + 1], &generation->seen[at],
				(generation->n_seen - at) * sizeof *generation->seen);
		generation->seen[at] = (ft_seen_token){.id = id};
		generation->n_seen++;
	}
	generation->seen[at].answered++;
	return FT_OK;
}

void
ft_generation_penalize(const ft_generation *generation, float *logits)
{
	const ft_sampling *s = generation->sampling;

	for (size_t i = 0; i < generation->n_seen; i++)
	{
		const ft_seen_token *token = &generation->seen[i];
		float *logit = &logits[token->id];

		*logit = *logit > 0 ? *logit / s->repetition_penalty : *logit * s->repetition_penalty;
		if (token->answered > 0)
			*logit -= s->frequency_penalty * (float) token->answered + s->presence_penalty;
	}
}

/* --- the next token --- */

bool
ft_generation_edits(const ft_generation *generation)
{
	return generation->constraint || generation->sampling->logprobs ||
		   ft_generation_has_penalties(generation);
}

ft_status
ft_generation_edit(ft_generation *generation, float *logits)
{
	const ft_config *config = generation->config;

	if (generation->sampling->logprobs)
		FT_TRY(ft_logprobs_look(&generation->logprobs, logits, (size_t) config->vocab));
	if (ft_generation_has_penalties(generation))
		ft_generation_penalize(generation, logits);
	if (!generation->constraint)
		return FT_OK;
	if (!generation->match.constraint)
		FT_TRY(ft_match_begin(generation->constraint, &generation->match));
	return ft_match_mask(&generation->match, generation->limit - (int32_t) generation->ids.length,
						 config->eos, config->n_eos, logits);
}

ft_sample
ft_generation_draw(const ft_generation *generation)
{
	const ft_sampling *s = generation->sampling;

	return (ft_sample){
		.temperature = s->temperature,
		.top_p = s->top_p,
		.min_p = s->min_p,
		.top_k = s->top_k,
		.uniform = ft_random_uniform(s->seed, FT_STREAM_SAMPLE, generation->ids.length),
	};
}

static bool
is_end_token(const ft_generation *generation, int32_t id)
{
	if (generation->sampling->ignore_eos)
		return false;
	for (int i = 0; i < generation->config->n_eos; i++)
		if (generation->config->eos[i] == id)
			return true;
	return false;
}

/* Cut the text before the earliest stop string; only its end, from `known` bytes on, is new. */
static bool
cut_at_stop(ft_generation *generation, size_t known)
{
	ft_text *text = &generation->text;
	size_t cut = SIZE_MAX;

	for (size_t i = 0; i < generation->sampling->n_stops; i++)
	{
		const ft_text *stop = &generation->sampling->stops[i];
		size_t from = known >= stop->length ? known - stop->length + 1 : 0;
		const char *found;

		if (from >= text->length)
			continue;
		found = memmem(text->data + from, text->length - from, stop->data, stop->length);
		if (found && (size_t) (found - text->data) < cut)
			cut = (size_t) (found - text->data);
	}
	if (cut == SIZE_MAX)
		return false;
	text->length = cut;
	text->data[cut] = '\0';
	return true;
}

ft_status
ft_generation_push(ft_generation *generation, int32_t id)
{
	size_t known = generation->text.length;

	FT_TRY(ft_ids_push(&generation->ids, id));
	if (ft_generation_has_penalties(generation))
		FT_TRY(note_answered(generation, id));
	if (is_end_token(generation, id))
	{
		generation->finish = FT_FINISH_STOP;
		return FT_OK;
	}
	if (generation->sampling->logprobs)
		FT_TRY(ft_logprobs_add(&generation->logprobs, id, known));
	FT_TRY(ft_tokenizer_decode_part(generation->tokenizer, &id, 1, true, &generation->text));
	if (generation->constraint)
		FT_TRY(ft_match_push(&generation->match, generation->text.data + known,
							 generation->text.length - known));
	if (generation->constraint && ft_match_is_whole(&generation->match))
		generation->finish = FT_FINISH_STOP;
	if (cut_at_stop(generation, known))
		generation->finish = FT_FINISH_STOP;
	else if (generation->finish == FT_FINISH_NONE &&
			 generation->ids.length >= (size_t) generation->limit)
		generation->finish = FT_FINISH_LENGTH;
	return FT_OK;
}

/*
 * Length of the valid UTF-8 character at bytes[0, n), or 0 and in *bad how many
 * bytes to replace: the longest prefix of a valid character, as Unicode (3.9,
 * "U+FFFD Substitution of Maximal Subparts") recommends.
 */
static size_t
utf8_character(const unsigned char *bytes, size_t n, size_t *bad)
{
	unsigned char first = bytes[0];
	unsigned char low = 0x80, high = 0xBF; /* of the second byte */
	size_t length;

	*bad = 1;
	if (first < 0x80)
		return first != 0;
	else if (first >= 0xC2 && first <= 0xDF)
		length = 2;
	else if (first >= 0xE0 && first <= 0xEF)
		length = 3;
	else if (first >= 0xF0 && first <= 0xF4)
		length = 4;
	else
		return 0;
	if (first == 0xE0)
		low = 0xA0;
	else if (first == 0xED)
		high = 0x9F;
	else if (first == 0xF0)
		low = 0x90;
	else if (first == 0xF4)
		high = 0x8F;
	for (size_t i = 1; i < length; i++)
	{
		if (i >= n || bytes[i] < low || bytes[i] > high)
			return 0;
		*bad = i + 1;
		low = 0x80;
		high = 0xBF;
	}
	return length;
}

ft_status
ft_text_make_valid(const char *bytes, size_t n, ft_text *text)
{
	for (size_t i = 0; i < n;)
	{
		size_t bad = 0;
		size_t good = 0;

		/* as long a run of good characters as there is, at once */
		while (i + good < n)
		{
			size_t length =
				utf8_character((const unsigned char *) bytes + i + good, n - i - good, &bad);

			if (length == 0)
				break;
			good += length;
		}
		FT_TRY(ft_text_append(text, bytes + i, good));
		i += good;
		if (i < n)
		{
			FT_TRY(ft_text_append(text, "\xEF\xBF\xBD", 3));
			i += bad;
		}
	}
	return ft_text_append(text, "", 0);
}

ft_status
ft_generation_text(const ft_generation *generation, size_t from, ft_text *text)
{
	const char *bytes = generation->text.data;
	size_t n = generation->text.length;

	/* an answer that was stopped is whole: what does not end a character there never would have */
	if (generation->finish != FT_FINISH_STOP)
		n -= ft_utf8_incomplete(bytes, n);
	if (from > n)
		from = n;
	return ft_text_make_valid(from > 0 ? bytes + from : bytes, n - from, text);
}

size_t
ft_generation_settled(const ft_generation *generation)
{
	const ft_text *text = &generation->text;
	size_t held = ft_utf8_incomplete(text->data, text->length);

	for (size_t i = 0; i < generation->sampling->n_stops; i++)
	{
		const ft_text *stop = &generation->sampling->stops[i];
		size_t most = stop->length - 1 < text->length ? stop->length - 1 : text->length;

		for (size_t n = most; n > held; n--)
			if (memcmp(text->data + text->length - n, stop->data, n) == 0)
				held = n;
	}
	return text->length - held;
}
