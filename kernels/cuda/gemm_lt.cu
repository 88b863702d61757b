/*
 * gemm_lt.cu: matrix products by cuBLASLt, which is opened when a device is.
 *
 * The library counts columns first, so a row-major c = a · b is asked for as
 * cᵀ = bᵀ · aᵀ: its first operand is our b, its second our a, and a matrix
 * [rows, cols] with step ld is its [cols, rows] with the same step.
 *
 * Descriptors and the algorithm that the library's heuristic names for a shape
 * are made once and kept.  Split sums are allowed only where the parts are added
 * by a step of their own, in order, so that a product repeats bit for bit.
 * Products of f32 are f32 throughout: TF32 is never used.
 */
#include "cuda.cuh"
#include "gemm_key.h"

#include <cublasLt.h>
#include <dlfcn.h>
#include <stdlib.h>

#define BUCKETS 1024
#define MOST_PLANS 8192 /* kept; then the half that was used longest ago is dropped */

struct lt_functions
{
	void *library;
	decltype(&cublasLtCreate) create;
	decltype(&cublasLtDestroy) destroy;
	decltype(&cublasLtMatmul) matmul;
	decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
	decltype(&cublasLtMatmulDescCreate) desc_create;
	decltype(&cublasLtMatmulDescDestroy) desc_destroy;
	decltype(&cublasLtMatmulDescSetAttribute) desc_set;
	decltype(&cublasLtMatrixLayoutCreate) layout_create;
	decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
	decltype(&cublasLtMatmulPreferenceCreate) preference_create;
	decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
	decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
};

struct gemm_plan
{
	ft_gemm_key key;
	gemm_plan *next; /* in its bucket */
	uint64_t used;   /* tick of the last use */
	int users;       /* threads that are launching it */
	bool found;      /* the library has an algorithm */
	cublasLtMatmulDesc_t desc;
	cublasLtMatrixLayout_t a;
	cublasLtMatrixLayout_t b;
	cublasLtMatrixLayout_t c;
	cublasLtMatmulAlgo_t algorithm;
};

struct ft_gemm_cache
{
	lt_functions lt;
	cublasLtHandle_t handle;
	pthread_mutex_t lock;
	gemm_plan *buckets[BUCKETS];
	int n;
	uint64_t tick;
};

static ft_status
check(cublasStatus_t status, const char *what)
{
	if (status == CUBLAS_STATUS_SUCCESS)
		return FT_OK;
	if (status == CUBLAS_STATUS_ALLOC_FAILED)
		return ft_fail(FT_NO_MEMORY, "%s: memory is exhausted", what);
	return ft_fail(FT_DEVICE, "%s: cuBLAS status %d", what, (int) status);
}

/* --- the library --- */

/* By the loader's own search, then where CUDA is installed by default. */
static ft_status
open_library(lt_functions *lt)
{
	static const char *const paths[] = {
		"libcublasLt.so.13",
		"/usr/local/cuda/lib64/libcublasLt.so.13",
		"/usr/local/cuda-13/lib64/libcublasLt.so.13",
		"libcublasLt.so.12",
		"/usr/local/cuda/lib64/libcublasLt.so.12",
	};

	for (size_t i = 0; i < sizeof paths / sizeof paths[0] && lt->library == NULL; i++)
		lt->library = dlopen(paths[i], RTLD_NOW | RTLD_LOCAL);
	if (lt->library == NULL)
		return ft_hint(ft_fail(FT_DEVICE, "cannot open libcublasLt.so.13"),
					   "Install cuBLAS of CUDA 13, or name its folder in LD_LIBRARY_PATH.");
	return FT_OK;
}

static ft_status
find(const lt_functions *lt, const char *name, void *function)
{
	void *found = dlsym(lt->library, name);

	if (found == NULL)
		return ft_fail(FT_DEVICE, "libcublasLt has no function \"%s\"", name);
	memcpy(function, &found, sizeof found);
	return FT_OK;
}

static ft_status
find_functions(lt_functions *lt)
{
	FT_TRY(find(lt, "cublasLtCreate", &lt->create));
	FT_TRY(find(lt, "cublasLtDestroy", &lt->destroy));
	FT_TRY(find(lt, "cublasLtMatmul", &lt->matmul));
	FT_TRY(find(lt, "cublasLtMatmulAlgoGetHeuristic", &lt->heuristic));
	FT_TRY(find(lt, "cublasLtMatmulDescCreate", &lt->desc_create));
	FT_TRY(find(lt, "cublasLtMatmulDescDestroy", &lt->desc_destroy));
	FT_TRY(find(lt, "cublasLtMatmulDescSetAttribute", &lt->desc_set));
	FT_TRY(find(lt, "cublasLtMatrixLayoutCreate", &lt->layout_create));
	FT_TRY(find(lt, "cublasLtMatrixLayoutDestroy", &lt->layout_destroy));
	FT_TRY(find(lt, "cublasLtMatmulPreferenceCreate", &lt->preference_create));
	FT_TRY(find(lt, "cublasLtMatmulPreferenceDestroy", &lt->preference_destroy));
	return find(lt, "cublasLtMatmulPreferenceSetAttribute", &lt->preference_set);
}

ft_status
ft_lt_open(ft_device *device)
{
	ft_gemm_cache *cache = (ft_gemm_cache *) calloc(1, sizeof *cache);
	ft_status status;

	if (cache == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	pthread_mutex_init(&cache->lock, NULL);
	status = open_library(&cache->lt);
	if (status == FT_OK)
		status = find_functions(&cache->lt);
	if (status == FT_OK)
		status = check(cache->lt.create(&cache->handle), "cublasLtCreate");
	device->gemm = cache;
	if (status != FT_OK)
		ft_lt_close(device);
	return status;
}

static void
free_plan(const lt_functions *lt, gemm_plan *plan)
{
	if (plan->a)
		lt->layout_destroy(plan->a);
	if (plan->b)
		lt->layout_destroy(plan->b);
	if (plan->c)
		lt->layout_destroy(plan->c);
	if (plan->desc)
		lt->desc_destroy(plan->desc);
	free(plan);
}

void
ft_lt_close(ft_device *device)
{
	ft_gemm_cache *cache = device->gemm;

	if (cache == NULL)
		return;
	for (int i = 0; i < BUCKETS; i++)
	{
		while (cache->buckets[i] != NULL)
		{
			gemm_plan *plan = cache->buckets[i];

			cache->buckets[i] = plan->next;
			free_plan(&cache->lt, plan);
		}
	}
	if (cache->handle)
		cache->lt.destroy(cache->handle);
	/* The library itself stays: it has threads and handlers of its own that outlive a handle. */
	pthread_mutex_destroy(&cache->lock);
	free(cache);
	device->gemm = NULL;
}

/* --- plans --- */

static cudaDataType_t
lt_type(int32_t type)
{
	return type == FT_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

/* The row-major [rows, cols] as the library sees it. */
static ft_status
make_layout(const lt_functions *lt, cublasLtMatrixLayout_t *layout, int32_t type, int64_t rows,
			int64_t cols, int64_t ld)
{
	return check(lt->layout_create(layout, lt_type(type), (uint64_t) cols, (uint64_t) rows, ld),
				 "cublasLtMatrixLayoutCreate");
}

static ft_status
describe(const lt_functions *lt, gemm_plan *plan)
{
	const ft_gemm_key *key = &plan->key;
	cublasOperation_t first = key->tb ? CUBLAS_OP_T : CUBLAS_OP_N;
	cublasOperation_t second = key->ta ? CUBLAS_OP_T : CUBLAS_OP_N;

	FT_TRY(check(lt->desc_create(&plan->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F),
				 "cublasLtMatmulDescCreate"));
	FT_TRY(check(lt->desc_set(plan->desc, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first),
				 "cublasLtMatmulDescSetAttribute"));
	FT_TRY(check(lt->desc_set(plan->desc, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second),
				 "cublasLtMatmulDescSetAttribute"));
	FT_TRY(make_layout(lt, &plan->b, key->in, key->tb ? key->n : key->k, key->tb ? key->k : key->n,
					   key->ldb));
	FT_TRY(make_layout(lt, &plan->a, key->in, key->ta ? key->k : key->m, key->ta ? key->m : key->k,
					   key->lda));
	return make_layout(lt, &plan->c, key->out, key->m, key->n, key->ldc);
}

static ft_status
set_preference(const lt_functions *lt, cublasLtMatmulPreference_t preference,
			   const ft_gemm_key *key)
{
	const uint64_t workspace = FT_LT_WORKSPACE;
	const struct
	{
		cublasLtMatmulPreferenceAttributes_t name;
		uint32_t value;
	} attributes[] = {
		{CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE},
		{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t) key->align_b},
		{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t) key->align_a},
		{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t) key->align_c},
		{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t) key->align_c},
	};

	FT_TRY(check(lt->preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
									&workspace, sizeof workspace),
				 "cublasLtMatmulPreferenceSetAttribute"));
	for (size_t i = 0; i < sizeof attributes / sizeof attributes[0]; i++)
		FT_TRY(check(lt->preference_set(preference, attributes[i].name, &attributes[i].value,
										sizeof attributes[i].value),
					 "cublasLtMatmulPreferenceSetAttribute"));
	return FT_OK;
}

/* Ask the heuristic; that it knows nothing for the shape is no failure. */
static ft_status
choose_algorithm(const ft_gemm_cache *cache, gemm_plan *plan)
{
	const lt_functions *lt = &cache->lt;
	cublasLtMatmulPreference_t preference = NULL;
	cublasLtMatmulHeuristicResult_t result;
	int n = 0;
	ft_status status;

	FT_TRY(check(lt->preference_create(&preference), "cublasLtMatmulPreferenceCreate"));
	status = set_preference(lt, preference, &plan->key);
	if (status == FT_OK &&
		lt->heuristic(cache->handle, plan->desc, plan->b, plan->a, plan->c, plan->c, preference, 1,
					  &result, &n) == CUBLAS_STATUS_SUCCESS &&
		n > 0 && result.state == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= FT_LT_WORKSPACE)
	{
		plan->found = true;
		plan->algorithm = result.algo;
	}
	lt->preference_destroy(preference);
	return status;
}

static ft_status
make_plan(const ft_gemm_cache *cache, const ft_gemm_key *key, gemm_plan **result)
{
	gemm_plan *plan = (gemm_plan *) calloc(1, sizeof *plan);
	ft_status status;

	if (plan == NULL)
		return ft_fail(FT_NO_MEMORY, "out of memory");
	plan->key = *key;
	status = describe(&cache->lt, plan);
	if (status == FT_OK)
		status = choose_algorithm(cache, plan);
	if (status != FT_OK)
	{
		free_plan(&cache->lt, plan);
		return status;
	}
	*result = plan;
	return FT_OK;
}

/* --- the cache --- */

static void
drop_old_plans(ft_gemm_cache *cache)
{
	uint64_t oldest = cache->tick - (uint64_t) cache->n / 2;

	for (int i = 0; i < BUCKETS; i++)
	{
		for (gemm_plan **at = &cache->buckets[i]; *at != NULL;)
		{
			gemm_plan *plan = *at;

			if (plan->used >= oldest || plan->users > 0)
			{
				at = &plan->next;
				continue;
			}
			*at = plan->next;
			free_plan(&cache->lt, plan);
			cache->n--;
		}
	}
}

/* The plan for a key, made on first sight, held until release_plan(). */
static ft_status
hold_plan(ft_gemm_cache *cache, const ft_gemm_key *key, gemm_plan **result)
{
	gemm_plan **bucket = &cache->buckets[ft_gemm_key_hash(key) % BUCKETS];
	ft_status status = FT_OK;
	gemm_plan *plan;

	pthread_mutex_lock(&cache->lock);
	for (plan = *bucket; plan != NULL && !ft_gemm_key_equal(&plan->key, key); plan = plan->next)
		;
	if (plan == NULL)
	{
		if (cache->n >= MOST_PLANS)
			drop_old_plans(cache);
		status = make_plan(cache, key, &plan);
		if (status == FT_OK)
		{
			plan->next = *bucket;
			*bucket = plan;
			cache->n++;
		}
	}
	if (status == FT_OK)
	{
		plan->used = ++cache->tick;
		plan->users++;
		*result = plan;
	}
	pthread_mutex_unlock(&cache->lock);
	return status;
}

static void
release_plan(ft_gemm_cache *cache, gemm_plan *plan)
{
	pthread_mutex_lock(&cache->lock);
	plan->users--;
	pthread_mutex_unlock(&cache->lock);
}

ft_status
ft_lt_gemm(ft_stream *s, ft_mat c, ft_mat a, bool ta, ft_mat b, bool tb, float alpha, float beta,
		   bool *done)
{
	ft_gemm_cache *cache = s->device->gemm;
	ft_gemm_key key = ft_gemm_key_of(c, a, ta, b, tb, beta);
	ft_status status = FT_OK;
	gemm_plan *plan;

	*done = false;
	if (a.dtype == FT_F32 && c.dtype != FT_F32)
		return FT_OK;
	FT_TRY(hold_plan(cache, &key, &plan));
	if (plan->found)
	{
		status = check(cache->lt.matmul(cache->handle, plan->desc, &alpha, b.data, plan->b, a.data,
										plan->a, &beta, c.data, plan->c, c.data, plan->c,
										&plan->algorithm, s->workspace, FT_LT_WORKSPACE, s->stream),
					   "cublasLtMatmul");
		*done = status == FT_OK;
	}
	release_plan(cache, plan);
	return status;
}
