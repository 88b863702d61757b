/*
 * export_rope.c: Llama 3.1's scaling of RoPE, as numbers of a configuration and
 * as factors of the frequencies, which is how GGUF files have it.
 */
#include "export.h"

#include <math.h>

void
ft_rope_factors(const ft_config *c, float *factors)
{
	double longest = c->rope_original_positions / c->rope_low_freq;
	double shortest = c->rope_original_positions / c->rope_high_freq;

	for (int j = 0; j < c->head_dim / 2; j++)
	{
		double wavelength = 2 * M_PI * pow(c->rope_theta, 2.0 * j / c->head_dim);
		double smooth = (c->rope_original_positions / wavelength - c->rope_low_freq) /
						(c->rope_high_freq - c->rope_low_freq);

		if (wavelength < shortest)
			factors[j] = 1;
		else if (wavelength > longest)
			factors[j] = (float) c->rope_factor;
		else
			factors[j] = (float) (1 / ((1 - smooth) / c->rope_factor + smooth));
	}
}

/* Published models have these numbers; the factor is that of the lowest frequencies. */
ft_status
ft_rope_from_factors(ft_config *c, const float *factors)
{
	int half = c->head_dim / 2;
	float expected[half];

	c->rope_scaling = FT_ROPE_LLAMA3;
	c->rope_factor = factors[half - 1];
	c->rope_low_freq = 1;
	c->rope_high_freq = 4;
	c->rope_original_positions = 8192;
	ft_rope_factors(c, expected);
	for (int j = 0; j < half; j++)
	{
		if (fabsf(factors[j] - expected[j]) > 1e-4f * expected[j])
			return ft_hint(ft_fail(FT_UNSUPPORTED,
								   "the factors of RoPE's frequencies are not those of Llama 3.1: "
								   "number %d is %g, expected %g",
								   j, (double) factors[j], (double) expected[j]),
						   "A GGUF file can hold them.");
	}
	return FT_OK;
}
