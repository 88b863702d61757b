/*
 * main.c: the program: its subcommands, and what all of them share of a process's set-up.
 */
#include "programs.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static const struct
{
	const char *name;
	int (*run)(int argc, char **argv);
} programs[] = {
	{"serve", ft_serve_main},       {"train", ft_train_main},     {"estimate", ft_estimate_main},
	{"evaluate", ft_evaluate_main}, {"inspect", ft_inspect_main}, {"tokenize", ft_tokenize_main},
	{"export", ft_export_main},
};

static void
print_usage(FILE *to)
{
	fputs("usage: pg_finetune_engine serve --socket PATH [--threads N] [--device D]\n"
		  "                                [--numerics fast|reference] [--control-fd N]\n"
		  "       pg_finetune_engine train JOBDIR [--control-fd N]\n"
		  "       pg_finetune_engine estimate JOBDIR [--control-fd N]\n"
		  "       pg_finetune_engine evaluate JOBDIR [--control-fd N]\n"
		  "       pg_finetune_engine export JOBDIR [--control-fd N]\n"
		  "       pg_finetune_engine inspect [--plan [--memory GIB] [--tokens N]] PATH\n"
		  "       pg_finetune_engine tokenize PATH [--special] [--decode] [--lines]\n",
		  to);
}

int
main(int argc, char **argv)
{
	/* a reader that went away is an error of the write, not our end */
	signal(SIGPIPE, SIG_IGN);

	if (argc == 2 && strcmp(argv[1], "--help") == 0)
	{
		print_usage(stdout);
		return fflush(stdout) == 0 ? FT_EXIT_DONE : FT_EXIT_FAILED;
	}
	for (size_t i = 0; argc > 1 && i < sizeof programs / sizeof programs[0]; i++)
	{
		if (strcmp(argv[1], programs[i].name) == 0)
			return programs[i].run(argc - 1, argv + 1);
	}
	print_usage(stderr);
	return FT_EXIT_USAGE;
}
