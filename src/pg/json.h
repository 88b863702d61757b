/*
 * json.h: reading and writing JSON by PostgreSQL's own functions.
 */
#ifndef PGFT_JSON_H
#define PGFT_JSON_H

#include "lib/stringinfo.h"
#include "utils/jsonb.h"

/*
 * Parse UTF-8 text, which comes from the engine.  `what` names it in the error
 * (XX000), which quotes none of it.
 */
extern Jsonb *pgft_json_parse(const char *text, int length, const char *what);

/*
 * A member of an object by name; NULL when there is none, when it is of
 * another type, or when `object` is NULL.  Strings are palloc'd.
 */
extern JsonbValue *pgft_json_member(JsonbContainer *object, const char *name);
extern JsonbContainer *pgft_json_object(JsonbContainer *object, const char *name);
extern JsonbContainer *pgft_json_array(JsonbContainer *object, const char *name);
extern char *pgft_json_string(JsonbContainer *object, const char *name);
extern bool pgft_json_double(JsonbContainer *object, const char *name, double *value);
extern bool pgft_json_int64(JsonbContainer *object, const char *name, int64 *value);

/* A member of any type as jsonb (palloc'd), NULL when there is none. */
extern Jsonb *pgft_json_any(JsonbContainer *object, const char *name);

/* An element of an array, NULL when it is not an object. */
extern JsonbContainer *pgft_json_element(JsonbContainer *array, int index);

/* Append `"name": "value"`, with a comma before it unless it is the object's first member. */
extern void pgft_json_add_string(StringInfo buf, const char *name, const char *value);
extern void pgft_json_add_int64(StringInfo buf, const char *name, int64 value);
extern void pgft_json_add_double(StringInfo buf, const char *name, double value);
extern void pgft_json_add_bool(StringInfo buf, const char *name, bool value);

/* The same with ready-made JSON text. */
extern void pgft_json_add_raw(StringInfo buf, const char *name, const char *json);

#endif
