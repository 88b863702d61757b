/*
 * full_checkpoint.c: checkpoints of runs that train all weights.
 *
 *     weights.safetensors    the weights, matrices and vectors, as trained
 *     optimizer.safetensors  AdamW's moments, as kept
 *     best.safetensors       the best weights so far, where they are others
 *
 * Each is the device's arrays, byte for byte.
 */
#include "full.h"

#include "device_arrays.h"
#include "files.h"

static const char *const files[3] = {"weights.safetensors", "optimizer.safetensors",
									 "best.safetensors"};

typedef struct full_context
{
	ft_full *full;
	ft_stream *stream;
} full_context;

/* Of the weights as they are. */
static int
weight_arrays(const ft_full *f, ft_device_array arrays[2])
{
	const ft_parameters *p = f->model->parameters;
	const ft_weight_layout *l = f->layout;

	arrays[0] = ft_device_array_make("matrices", p->dtype, l->matrices, p->matrices);
	arrays[1] = ft_device_array_make("vectors", FT_F32, l->n - l->matrices, p->vectors);
	return 2;
}

static ft_device_array
bytes_array(const char *name, int64_t n, void *data)
{
	return (ft_device_array){.name = name, .type = "U8", .n = n, .bytes = (size_t) n, .data = data};
}

static int
moment_arrays(const ft_full *f, ft_device_array arrays[FT_MAX_DEVICE_ARRAYS])
{
	const ft_weight_layout *l = f->layout;
	int64_t vectors = l->n - l->matrices;
	int64_t blocks = (l->matrices + FT_MOMENT_BLOCK - 1) / FT_MOMENT_BLOCK;
	int n = 0;

	arrays[n++] = ft_device_array_make("vectors.exp_avg", FT_F32, vectors, f->vectors_m);
	arrays[n++] = ft_device_array_make("vectors.exp_avg_sq", FT_F32, vectors, f->vectors_v);
	if (!f->small)
	{
		arrays[n++] = ft_device_array_make("exp_avg", FT_F32, l->matrices, f->matrices_m);
		arrays[n++] = ft_device_array_make("exp_avg_sq", FT_F32, l->matrices, f->matrices_v);
		return n;
	}
	arrays[n++] = bytes_array("exp_avg", l->matrices, f->matrices_m);
	arrays[n++] = bytes_array("exp_avg_sq", l->matrices, f->matrices_v);
	arrays[n++] = bytes_array("exp_avg.exponents", blocks, f->matrices_m_exponents);
	arrays[n++] = bytes_array("exp_avg_sq.exponents", blocks, f->matrices_v_exponents);
	return n;
}

/* The best weights stand on the host. */
static ft_status
write_best(const ft_full *f, const char *path)
{
	ft_device_array arrays[2];

	weight_arrays(f, arrays);
	arrays[0].data = f->best;
	arrays[1].data = f->best + arrays[0].bytes;
	return ft_device_arrays_write(path, arrays, 2, NULL, NULL);
}

static ft_status
save(void *context, const char *directory, bool best_beside)
{
	const full_context *c = context;
	const ft_ops *ops = c->full->model->ops;
	ft_device_array arrays[FT_MAX_DEVICE_ARRAYS];
	char path[FT_PATH_SIZE];
	int n = weight_arrays(c->full, arrays);

	FT_TRY(ft_path_join(path, directory, files[0]));
	FT_TRY(ft_device_arrays_write(path, arrays, n, ops, c->stream));
	n = moment_arrays(c->full, arrays);
	FT_TRY(ft_path_join(path, directory, files[1]));
	FT_TRY(ft_device_arrays_write(path, arrays, n, ops, c->stream));
	if (!best_beside)
		return FT_OK;
	FT_TRY(ft_path_join(path, directory, files[2]));
	return write_best(c->full, path);
}

static ft_status
load(void *context, const char *directory, const ft_run_state *state, bool best_beside)
{
	const full_context *c = context;
	const ft_ops *ops = c->full->model->ops;
	ft_device_array arrays[FT_MAX_DEVICE_ARRAYS];
	char path[FT_PATH_SIZE];
	int n = weight_arrays(c->full, arrays);

	if (best_beside)
	{
		FT_TRY(ft_path_join(path, directory, files[2]));
		FT_TRY(ft_device_arrays_read(path, arrays, n, ops, c->stream));
		FT_TRY(ft_full_keep_best(c->full, c->stream));
	}
	FT_TRY(ft_path_join(path, directory, files[0]));
	FT_TRY(ft_device_arrays_read(path, arrays, n, ops, c->stream));
	if (state->best.step > 0 && !best_beside)
		FT_TRY(ft_full_keep_best(c->full, c->stream));
	n = moment_arrays(c->full, arrays);
	FT_TRY(ft_path_join(path, directory, files[1]));
	return ft_device_arrays_read(path, arrays, n, ops, c->stream);
}

ft_status
ft_full_save(const char *directory, const char *identity, const ft_run_state *state, ft_full *full,
			 ft_stream *stream)
{
	full_context c = {full, stream};
	ft_checkpoint_contents contents = {
		.files = {files[0], files[1], files[2]}, .save = save, .context = &c};

	return ft_checkpoint_save_contents(directory, identity, state, &contents);
}

ft_status
ft_full_load(const char *directory, const char *identity, ft_run_state *state, ft_full *full,
			 ft_stream *stream, bool *found)
{
	full_context c = {full, stream};
	ft_checkpoint_contents contents = {
		.files = {files[0], files[1], files[2]}, .load = load, .context = &c};

	return ft_checkpoint_load_contents(directory, identity, state, &contents, found);
}
