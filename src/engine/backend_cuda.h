/*
 * backend_cuda.h: the CUDA backend, a shared object opened at run time.
 *
 * It lies beside the engine as pg_finetune_cuda.so, and is built only where the
 * CUDA compiler is.  PG_FINETUNE_CUDA_BACKEND names another file.
 */
#ifndef FT_BACKEND_CUDA_H
#define FT_BACKEND_CUDA_H

#include "ops.h"

/* The backend's table, opened once and never closed.  FT_DEVICE, naming the file, when it is
 * missing or cannot be used.  That says nothing of a GPU: the table's device_open() does. */
ft_status ft_cuda_backend(const ft_ops **ops);

#endif
