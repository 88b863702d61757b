/*
 * catalog.h: SPI on the extension's own tables.
 *
 * Users have no rights on finetune.model and finetune.weights; functions read
 * and write them with the rights of the tables' owner, with a fixed
 * search_path, and with queries that hold nothing of the user's but
 * parameters.
 */
#ifndef PGFT_CATALOG_H
#define PGFT_CATALOG_H

#include "executor/spi.h"

typedef struct PgftCatalog
{
	Oid save_user;
	int save_context;
	int save_nest_level;
	bool pushed_snapshot;
} PgftCatalog;

/*
 * Connect to SPI as the owner of the extension's tables.  Allocations made
 * before the matching leave are gone after it, unless made in another context
 * (SPI_palloc).  On an error the transaction's end undoes all of it.
 *
 * `latest`: queries see what is committed now, as lookups in the system
 * catalogs do, rather than the snapshot of the running query (but for a
 * parallel one); for reading only.
 */
extern void pgft_catalog_enter(PgftCatalog *catalog, bool latest);
extern void pgft_catalog_leave(PgftCatalog *catalog);

/*
 * How many have been entered and not left.  Those that an error has ended count
 * for ever, so only what is added within one function means anything: who
 * catches an error without a subtransaction must not go on when it has grown.
 */
extern int pgft_catalog_depth(void);

/* OID of finetune.<name>, InvalidOid when the extension is not there. */
extern Oid pgft_relation_oid(const char *name);

/*
 * Has the table finetune.<table> this column?  The catalog may be an older
 * version's until ALTER EXTENSION ... UPDATE is run.
 */
extern bool pgft_has_column(const char *table, const char *column);

/*
 * SPI_execute_with_args between enter and leave, with an error unless the
 * result is `expected` (SPI_OK_…).  `nulls` may be NULL.
 */
extern void pgft_execute(const char *query, int nargs, Oid *types, Datum *values, const char *nulls,
						 int expected);

/*
 * The same for a command that follows DDL: it sees what is committed now, as
 * DDL itself does, also in a transaction that otherwise keeps an older snapshot.
 */
extern void pgft_follow(const char *query, int nargs, Oid *types, Datum *values, const char *nulls,
						int expected);

/*
 * A SELECT that sees what this transaction has written, and may lock rows;
 * pgft_execute's see what the running query sees.  Returns the number of rows.
 */
extern uint64 pgft_select(const char *query, int nargs, Oid *types, Datum *values);

#endif
