/*
 * programs.h: the engine's subcommands, each a program of its own.
 *
 * argv[0] is the subcommand's name.  Each returns the process's exit code.
 */
#ifndef FT_PROGRAMS_H
#define FT_PROGRAMS_H

/* Exit codes of every subcommand (README.md). */
#define FT_EXIT_DONE 0
#define FT_EXIT_FAILED 1
#define FT_EXIT_USAGE 2
#define FT_EXIT_CANCELLED 3

int ft_serve_main(int argc, char **argv);    /* serve.c */
int ft_train_main(int argc, char **argv);    /* train.c */
int ft_estimate_main(int argc, char **argv); /* estimate.c */
int ft_evaluate_main(int argc, char **argv); /* evaluate.c */
int ft_export_main(int argc, char **argv);   /* export.c */
int ft_inspect_main(int argc, char **argv);  /* inspect.c */
int ft_tokenize_main(int argc, char **argv); /* tokenize.c */

#endif
