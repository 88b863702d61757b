/*
 * reference.h: what the reference model gives the sides of preference pairs.
 *
 * The reference is the model as training begins: the base with a new adapter,
 * which changes nothing yet, or with the adapter that is continued from.  It
 * never changes, so the log-probabilities of all pairs are made once, before
 * the first step, and kept in
 *
 *     JOBDIR/reference.bin  a header, and for every FT_WINDOW documents their
 *                           sums (f64, chosen and rejected) and a SHA-256
 *
 * A window that is whole stays, also when the engine is killed at the next one;
 * a damaged one is made again, and so are those behind it.  Windows are batched
 * as evaluations are, so that before the first step every margin of the
 * validation pairs is exactly 0.
 */
#ifndef FT_REFERENCE_H
#define FT_REFERENCE_H

#include "trainer.h"

/* Fill trainer->dataset->reference, from the file as far as it goes, then by the trainer's adapter,
 * which must be the first one.  Nothing is done for documents that are no pairs, or twice.
 * `identity` says whose file this is (train.c).  FT_NON_FINITE when a sum is not finite. */
ft_status ft_reference_prepare(const char *directory, const char *identity, ft_trainer *trainer);

#endif
