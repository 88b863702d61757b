/*
 * fuzz_job.c: job.json, and its options resolved.
 */
#include "job_file.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[] = "/tmp/fuzz_job.XXXXXX";
static char path[sizeof folder + 16];

static void
remove_folder(void)
{
	unlink(path);
	rmdir(folder);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int fd = -1;
	const ft_config config = {.hidden = 64,
							  .layers = 2,
							  .heads = 4,
							  .kv_heads = 2,
							  .head_dim = 16,
							  .ffn = 128,
							  .vocab = 1000,
							  .max_positions = 2048};
	const ft_data_size data_size = {.documents = 10, .tokens = 1000, .max_length = 300};
	ft_job *job;

	if (fd < 0)
	{
		if (mkdtemp(folder) == NULL)
			abort();
		snprintf(path, sizeof path, "%s/job.json", folder);
		fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		atexit(remove_folder);
	}
	if (fd < 0 || ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t) size)
		abort();
	if (ft_job_read(folder, &job) == FT_OK)
	{
		json_t *options;

		ft_options_resolve(&job->options, &config, job->context_length, &data_size);
		options = ft_options_json(&job->options);
		/* what is said to be valid must be read again */
		if (options == NULL || ft_options_read(options, &job->options) != FT_OK)
			abort();
		json_decref(options);
		ft_job_free(job);
	}
	return 0;
}
