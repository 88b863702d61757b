/*
 * device.c: from a device's name to its operations.
 */
#include "device.h"

#include "backend_cuda.h"
#include "process.h"

#include <sched.h>
#include <string.h>

/* Half of the cores that this process may use: the database has the other half. */
static int
default_threads(void)
{
	cpu_set_t cores;
	int n = 1;

	if (sched_getaffinity(0, sizeof cores, &cores) == 0)
		n = CPU_COUNT(&cores) / 2;
	return n < 1 ? 1 : n;
}

static ft_status
open_cuda(const ft_device_config *config, const ft_ops **ops, ft_device **device)
{
	FT_TRY(ft_cuda_backend(ops));
	return (*ops)->device_open(config, device);
}

ft_status
ft_device_open_named(const char *name, int threads, ft_numerics numerics, const ft_ops **ops,
					 ft_device **device)
{
	ft_device_config config = {.name = name, .threads = threads, .numerics = numerics};

	if (name && strncmp(name, "cuda", 4) == 0)
		return open_cuda(&config, ops, device);
	if (name && strcmp(name, "auto") != 0 && strcmp(name, "cpu") != 0)
		return ft_fail(FT_INVALID, "unknown device \"%s\", expected auto, cpu, cuda or cuda:N",
					   name);
	if (!name || strcmp(name, "auto") == 0)
	{
		config.name = "cuda";
		if (open_cuda(&config, ops, device) == FT_OK)
			return FT_OK;
		ft_log("log", "using the CPU: %s", ft_error_message());
	}
	config.name = "cpu";
	if (threads < 1)
		config.threads = default_threads();
	*ops = ft_cpu_ops();
	FT_TRY(ft_ops_check(*ops));
	return (*ops)->device_open(&config, device);
}

ft_status
ft_numerics_parse(const char *name, ft_numerics *numerics)
{
	if (!name || strcmp(name, "fast") == 0)
		*numerics = FT_NUMERICS_FAST;
	else if (strcmp(name, "reference") == 0)
		*numerics = FT_NUMERICS_REFERENCE;
	else
		return ft_fail(FT_INVALID, "unknown numerics \"%s\", expected fast or reference", name);
	return FT_OK;
}
