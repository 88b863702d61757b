/*
 * hf_config.h: the configuration of a Hugging Face model directory, out of the
 * text of its config.json and generation_config.json.
 *
 * Keys that transformers' classes of these names do not know change nothing
 * there and are passed over here; a key that they know and this engine cannot
 * honour is refused by its name.
 */
#ifndef FT_HF_CONFIG_H
#define FT_HF_CONFIG_H

#include "model_file.h"

/* What config.json says: everything of *config but padding (-1) and, where it names none, bos and
 * ends.  Sizes are not yet checked against each other (ft_model_config_check).  FT_CORRUPT
 * names the key; FT_UNSUPPORTED the architecture or the feature. */
ft_status ft_hf_config_read(const char *text, size_t n, ft_config *config);

/* The ends of generation that generation_config.json lists, added to those of *config. */
ft_status ft_hf_generation_read(const char *text, size_t n, ft_config *config);

/* Values of all tensors of such a model, a tied head counted once; INT64_MAX where they are more.
 */
int64_t ft_config_parameters(const ft_config *config);

/* The classes that are known, for a hint. */
#define FT_HF_ARCHITECTURES                                                        \
	"LlamaForCausalLM, MistralForCausalLM, MixtralForCausalLM, Qwen2ForCausalLM, " \
	"Qwen3ForCausalLM"

#endif
