/*
 * queue_position.c: a job's place among those that wait.
 *
 * A place is one more than the number of jobs before it, and there is no way
 * but to count them.  A queue may hold ten thousand, and DESCRIBE is asked
 * often: so this walks the index job_waiting itself, from the first job to this
 * one, where a query would spend most of its time on making rows of what is
 * only counted.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/visibilitymap.h"
#include "catalog.h"
#include "miscadmin.h"
#include "pg_finetune.h"
#include "storage/bufmgr.h"
#include "storage/predicate.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* The columns of job_waiting: home, priority, created_at, id. */
#define KEYS 4

/* Entries that are looked at together. */
#define CHUNK 1024

/*
 * What the first entry with these values points at, of those with a row that
 * the snapshot sees: such an entry stays where it is as long as the snapshot.
 */
static bool
find_entry(Relation table, Relation index, ScanKey keys, int n, ItemPointer entry)
{
	TupleTableSlot *slot = table_slot_create(table, NULL);
	IndexScanDesc scan = index_beginscan(table, index, GetActiveSnapshot(), n, 0);
	bool found = false;
	ItemPointer tid;

	index_rescan(scan, keys, n, NULL, 0);
	while (!found && (tid = index_getnext_tid(scan, ForwardScanDirection)) != NULL)
	{
		*entry = *tid;
		found = index_fetch_heap(scan, slot);
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	return found;
}

/* Of entries that point into one page of the table, those with a row that the snapshot sees. */
static int
count_in_page(Relation table, const ItemPointerData *tids, int n, Buffer *map)
{
	BlockNumber block = ItemPointerGetBlockNumber(tids);
	Snapshot snapshot = GetActiveSnapshot();
	int count = 0;
	Buffer buffer;

	if (VM_ALL_VISIBLE(table, block, map))
	{
		PredicateLockPage(table, block, snapshot);
		return n;
	}
	buffer = ReadBuffer(table, block);
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	for (int i = 0; i < n; i++)
	{
		ItemPointerData tid = tids[i];
		HeapTupleData tuple;

		if (heap_hot_search_buffer(&tid, table, buffer, snapshot, &tuple, NULL, true))
			count++;
	}
	UnlockReleaseBuffer(buffer);
	return count;
}

static int
count_visible(Relation table, const ItemPointerData *tids, int n, Buffer *map)
{
	int count = 0;
	int start = 0;

	while (start < n)
	{
		BlockNumber block = ItemPointerGetBlockNumber(&tids[start]);
		int end = start + 1;

		while (end < n && ItemPointerGetBlockNumber(&tids[end]) == block)
			end++;
		count += count_in_page(table, &tids[start], end - start, map);
		start = end;
	}
	return count;
}

/*
 * How many jobs there are from one entry of the index to another, in its
 * order.  The scan has no keys: to compare each entry with one would take most
 * of its time.
 */
static int64
count_between(Relation table, Relation index, ItemPointer first, ItemPointer last)
{
	IndexScanDesc scan = index_beginscan(table, index, GetActiveSnapshot(), 0, 0);
	ItemPointerData *tids = palloc(CHUNK * sizeof(*tids));
	Buffer map = InvalidBuffer;
	bool inside = false;
	bool done = false;
	int64 count = 0;
	int n = 0;

	index_rescan(scan, NULL, 0, NULL, 0);
	while (!done)
	{
		ItemPointer tid = index_getnext_tid(scan, ForwardScanDirection);

		if (tid != NULL && (inside = inside || ItemPointerEquals(tid, first)))
			tids[n++] = *tid;
		done = tid == NULL || ItemPointerEquals(tid, last);
		if (done || n == CHUNK)
		{
			CHECK_FOR_INTERRUPTS();
			count += count_visible(table, tids, n, &map);
			n = 0;
		}
	}
	if (BufferIsValid(map))
		ReleaseBuffer(map);
	index_endscan(scan);
	pfree(tids);
	return count;
}

/* Of a job with these values of the index; 0 when it is not in it. */
static int64
position_of(Relation table, Relation index, const Datum *values)
{
	static const Oid equal[KEYS] = {F_TEXTEQ, F_INT4EQ, F_TIMESTAMPTZ_EQ, F_UUID_EQ};
	ScanKeyData keys[KEYS];
	ItemPointerData first;
	ItemPointerData last;

	for (int i = 0; i < KEYS; i++)
		ScanKeyEntryInitialize(&keys[i], 0, i + 1, BTEqualStrategyNumber, InvalidOid,
							   index->rd_indcollation[i], equal[i], values[i]);
	if (!find_entry(table, index, keys, KEYS, &last) || !find_entry(table, index, keys, 1, &first))
		return 0;
	return count_between(table, index, &first, &last);
}

/*
 * finetune.queue_position(home, priority, created_at, id): 1 for the job that is
 * next of those created there; NULL for one that does not wait.
 */
PG_FUNCTION_INFO_V1(pgft_queue_position);
Datum
pgft_queue_position(PG_FUNCTION_ARGS)
{
	Datum values[KEYS];
	Relation table;
	Relation index;
	int64 position;

	for (int i = 0; i < KEYS; i++)
		values[i] = PG_GETARG_DATUM(i);
	table = table_open(pgft_relation_oid("job"), AccessShareLock);
	index = index_open(pgft_relation_oid("job_waiting"), AccessShareLock);
	position = position_of(table, index, values);
	index_close(index, AccessShareLock);
	table_close(table, AccessShareLock);
	if (position == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT64(position);
}
