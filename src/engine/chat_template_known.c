/*
 * chat_template_known.c: the chat templates we know.
 */
#include "chat_template_internal.h"

#define CHATML_TURNS                                                                         \
	"{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}" \
	"{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
#define LLAMA3_TURNS                                                                            \
	"{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "     \
	"'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | " \
	"trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"    \
	"{% endif %}{{ content }}{% endfor %}"
#define LLAMA3_ANSWER "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
#define SMOLLM_SYSTEM "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

#define HELPFUL "You are a helpful assistant."
#define ZEPHYR(user, system, assistant)                                                        \
	"{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ " user              \
	" + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ " system \
	" + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' "            \
	"%}\n{{ " assistant " + message['content'] + eos_token }}\n{% endif %}\n"                  \
	"{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"       \
	"{% endfor %}"
#define INST_TURNS(open, close, answer)                                                      \
	"{{ bos_token }}{% for message in messages %}"                                           \
	"{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception("      \
	"'Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"   \
	"{% if message['role'] == 'user' %}{{ " open " + message['content'] + " close " }}"      \
	"{% elif message['role'] == 'assistant' %}{{ " answer " }}{% else %}{{ raise_exception(" \
	"'Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"

const ft_chat_template ft_chat_templates[] = {
	{
		.name = "smollm2",
		.kind = FT_TEMPLATE_FRAMED,
		.role_open = "<|im_start|>",
		.after_role = "\n",
		.turn_end = "<|im_end|>",
		.after_turn = "\n",
		.always_system = true,
		.default_system = SMOLLM_SYSTEM,
		.texts = {"{% for message in messages %}"
				  "{% if loop.first and messages[0]['role'] != 'system' %}"
				  "{{ '<|im_start|>system\n" SMOLLM_SYSTEM "<|im_end|>\n' }}"
				  "{% endif %}" CHATML_TURNS},
	},
	{
		.name = "chatml",
		.kind = FT_TEMPLATE_FRAMED,
		.role_open = "<|im_start|>",
		.after_role = "\n",
		.turn_end = "<|im_end|>",
		.after_turn = "\n",
		.texts = {"{% for message in messages %}" CHATML_TURNS,
				  "{% if not add_generation_prompt is defined %}"
				  "{% set add_generation_prompt = false %}{% endif %}"
				  "{% for message in messages %}" CHATML_TURNS},
	},
	{
		.name = "llama3",
		.kind = FT_TEMPLATE_FRAMED,
		.bos = true,
		.role_open = "<|start_header_id|>",
		.role_close = "<|end_header_id|>",
		.after_role = "\n\n",
		.turn_end = "<|eot_id|>",
		.after_turn = "",
		.trim = true,
		/* the first release's always opens an answer; a conversation to train on has none */
		.texts = {LLAMA3_TURNS "{% if add_generation_prompt %}" LLAMA3_ANSWER "{% endif %}",
				  LLAMA3_TURNS LLAMA3_ANSWER},
	},
	{
		.name = "llama3.1",
		.kind = FT_TEMPLATE_FRAMED,
		.bos = true,
		.role_open = "<|start_header_id|>",
		.role_close = "<|end_header_id|>",
		.after_role = "\n\n",
		.turn_end = "<|eot_id|>",
		.after_turn = "",
		.trim = true,
		.always_system = true,
		.default_system = "",
		/* the date that the template has for callers who give none: an answer must not depend on
		   the day */
		.system_prefix = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n",
		.parts = {"<|start_header_id|>", "Cutting Knowledge Date: December 2023", "26 Jul 2024"},
	},
	{
		.name = "qwen2",
		.kind = FT_TEMPLATE_FRAMED,
		.role_open = "<|im_start|>",
		.after_role = "\n",
		.turn_end = "<|im_end|>",
		.after_turn = "\n",
		.always_system = true,
		.default_system = HELPFUL,
		.texts = {"{% for message in messages %}"
				  "{% if loop.first and messages[0]['role'] != 'system' %}"
				  "{{ '<|im_start|>system\n" HELPFUL "<|im_end|>\n' }}{% endif %}" CHATML_TURNS},
		.digests = {"b660b60891731ff8d1850ecfcede381de5d991881914645fa096d1d8233ef567"},
	},
	{
		.name = "qwen2.5",
		.kind = FT_TEMPLATE_FRAMED,
		.role_open = "<|im_start|>",
		.after_role = "\n",
		.turn_end = "<|im_end|>",
		.after_turn = "\n",
		.always_system = true,
		.default_system = "You are Qwen, created by Alibaba Cloud. " HELPFUL,
		.digests = {"4a60dc93b4d61b524d7e49cce3e1c8192df6ddfd9fb3227db17b0f2521577066"},
	},
	{
		.name = "qwen3",
		.kind = FT_TEMPLATE_FRAMED,
		.role_open = "<|im_start|>",
		.after_role = "\n",
		.turn_end = "<|im_end|>",
		.after_turn = "\n",
		.think = true,
		.digests = {"9d47172a706e35905b53d8eff4c01ccc4641324b9544255b3ac394f4ba1e7a66"},
	},
	{
		.name = "zephyr",
		.kind = FT_TEMPLATE_FRAMED,
		.role_open = "<|",
		.role_close = "|>",
		.after_role = "\n",
		.after_turn = "\n",
		.plain_marks = true,
		.eos_end = true,
		.texts = {ZEPHYR("'<|user|>\n'", "'<|system|>\n'", "'<|assistant|>\n'")},
	},
	/* Mistral 7B v0.1 as it came first, which has a space behind an answer */
	{
		.name = "mistral-v0.1",
		.kind = FT_TEMPLATE_INST,
		.bos = true,
		.open = "[INST] ",
		.close = " [/INST]",
		.answer_open = "",
		.answer_close = "",
		.answer_end = " ",
		.texts = {INST_TURNS("'[INST] '", "' [/INST]'", "message['content'] + eos_token + ' '")},
	},
	/* Mistral 7B v0.2 and Mixtral as they came first */
	{
		.name = "mistral-v0.2",
		.kind = FT_TEMPLATE_INST,
		.bos = true,
		.open = "[INST] ",
		.close = " [/INST]",
		.answer_open = "",
		.answer_close = "",
		.answer_end = "",
		.texts = {INST_TURNS("'[INST] '", "' [/INST]'", "message['content'] + eos_token")},
	},
	/* what Mistral 7B v0.1, v0.2 and Mixtral have had since */
	{
		.name = "mistral",
		.kind = FT_TEMPLATE_INST,
		.bos = true,
		.open = " [INST] ",
		.close = " [/INST]",
		.answer_open = " ",
		.answer_close = "",
		.answer_end = "",
		.system = FT_SYSTEM_FIRST,
		.digests = {"6be3189d630fd982c213c71c29a234a692be8d78e4c3c537e15ed95bb102b2e5"},
	},
	{
		.name = "mistral-v0.3",
		.kind = FT_TEMPLATE_INST,
		.bos = true,
		.open = "[INST] ",
		.close = "[/INST]",
		.answer_open = " ",
		.answer_close = "",
		.answer_end = "",
		.trim_answer = true,
		.system = FT_SYSTEM_LAST,
		.parts = {"[AVAILABLE_TOOLS] [", "loop.last and system_message is defined",
				  "\"[INST] \" + message[\"content\"] + \"[/INST]\"",
				  "\" \" + message[\"content\"]|trim + eos_token"},
	},
	{
		.name = "llama2",
		.kind = FT_TEMPLATE_INST,
		.bos_each = true,
		.trim = true,
		.trim_answer = true,
		.open = "[INST] ",
		.close = " [/INST]",
		.answer_open = " ",
		.answer_close = " ",
		.answer_end = "",
		.system = FT_SYSTEM_LLAMA2,
		.digests = {"bbf09495af628983da13c8832fc41b75bdc21a7b379e7bb408092ebdb8d5047c"},
	},
	{.name = "plain"},
};

const size_t ft_n_chat_templates = sizeof ft_chat_templates / sizeof ft_chat_templates[0];

const char ft_chat_template_names[] =
	"smollm2, chatml, llama3, llama3.1, qwen2, qwen2.5, qwen3, zephyr, mistral-v0.1, mistral-v0.2, "
	"mistral, mistral-v0.3, llama2 or plain";
