/* Where records are. */

#include "jsonscan.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define BLOCK 64

/* Which bytes of a block are quotation marks, backslashes, braces: a bit each. */
typedef struct {
    uint64_t quotes, slashes, braces;
} Signs;

#ifdef __SSE2__
static inline uint64_t equal(__m128i bytes, char c) {
    return (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(c)));
}

static inline Signs signs_of(const char *block) {
    Signs found = {0, 0, 0};
    for (int i = 0; i < BLOCK; i += 16) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(block + i));
        found.quotes |= equal(bytes, '"') << i;
        found.slashes |= equal(bytes, '\\') << i;
        found.braces |= (equal(bytes, '{') | equal(bytes, '}')) << i;
    }
    return found;
}
#else
static inline Signs signs_of(const char *block) {
    Signs found = {0, 0, 0};
    for (int i = 0; i < BLOCK; i++) {
        found.quotes |= (uint64_t)(block[i] == '"') << i;
        found.slashes |= (uint64_t)(block[i] == '\\') << i;
        found.braces |= (uint64_t)(block[i] == '{' || block[i] == '}') << i;
    }
    return found;
}
#endif

static inline int count_bits(uint64_t x) {
    x -= (x >> 1) & 0x5555555555555555u;
    x = (x & 0x3333333333333333u) + ((x >> 2) & 0x3333333333333333u);
    return (int)((((x + (x >> 4)) & 0x0F0F0F0F0F0F0F0Fu) * 0x0101010101010101u) >> 56);
}

/* A record: data[start:end], the quotation marks in it, whether more than one comma with white space stands before it. */
typedef struct {
    int64_t start, end, quotes, special;
} Record;

/* What is known where some bytes end. open: where the record begins that is open there, -1: none; quotes: in it so far; wrong: where
   a brace closes that none opens, -1: nowhere. */
typedef struct {
    int64_t depth, in_string, escaped, open, quotes, wrong;
} State;

typedef struct {
    Record *all;
    Py_ssize_t n, room;
} Records;

static int is_plain_gap(const char *at, const char *end) {
    int commas = 0;
    for (; at < end; at++) {
        if (*at == ',') commas++;
        else if (*at != ' ' && *at != '\n' && *at != '\r' && *at != '\t') return 0;
    }
    return commas == 1;
}

static int add_record(Records *records, const char *data, int64_t start, int64_t end, int64_t quotes) {
    if (records->n == records->room) {
        Py_ssize_t room = records->room ? 2 * records->room : 1024;
        Record *all = PyMem_RawRealloc(records->all, (size_t)room * sizeof(Record));
        if (all == NULL) return 0;
        records->all = all;
        records->room = room;
    }
    int64_t before = records->n ? records->all[records->n - 1].end : 0;
    records->all[records->n++] = (Record){start, end, quotes, !is_plain_gap(data + before, data + start)};
    return 1;
}

/* Quotation marks of a block without those behind a backslash; *skip: the last place that one escapes. */
static uint64_t unescaped(Signs signs, int64_t at, int64_t *skip) {
    if (*skip == at) signs.quotes &= ~(uint64_t)1;
    for (; signs.slashes; signs.slashes &= signs.slashes - 1) {
        int64_t slash = at + __builtin_ctzll(signs.slashes);
        if (slash == *skip) continue;
        *skip = slash + 1;
        if (*skip < at + BLOCK) signs.quotes &= ~((uint64_t)1 << (*skip - at));
    }
    return signs.quotes;
}

/* Take up the braces of data[from:size]. Returns 0 when there is no memory. */
static int find_records(const char *data, int64_t from, int64_t size, int64_t record_depth, State *state, Records *records) {
    int64_t skip = state->escaped ? from : -1, opened = 0, total = state->quotes;
    for (int64_t at = from; at < size; at += BLOCK) {
        char last[BLOCK] = {0};
        int64_t left = size - at;
        if (left < BLOCK) memcpy(last, data + at, (size_t)left);
        Signs signs = signs_of(left < BLOCK ? last : data + at);
        if (signs.slashes || skip == at) signs.quotes = unescaped(signs, at, &skip);
        for (uint64_t braces = signs.braces; braces; braces &= braces - 1) {
            int place = __builtin_ctzll(braces);
            int64_t quotes = total + count_bits(signs.quotes & (((uint64_t)1 << place) - 1));
            if ((quotes + state->in_string) & 1) continue;
            if (data[at + place] == '{') {
                if (++state->depth != record_depth) continue;
                state->open = at + place;
                opened = quotes;
            } else if (--state->depth < 0) {
                state->wrong = at + place;
                return 1;
            } else if (state->depth == record_depth - 1) {
                if (!add_record(records, data, state->open, at + place + 1, quotes - opened)) return 0;
                state->open = -1;
            }
        }
        total += count_bits(signs.quotes);
    }
    state->in_string = (total + state->in_string) & 1;
    state->quotes = state->open < 0 ? 0 : total - opened;
    state->escaped = skip == size && size > from;
    return 1;
}

const char scan_doc[] = PyDoc_STR(
"scan(data, start, record_depth, depth, in_string, escaped, open, quotes)\n--\n\n"
"The records, objects at a depth of braces, that end in data[start:]; data begins behind a record, or where the file does.\n"
"depth, in_string, escaped: the state at `start`; open: where the record begins that is open there, or -1; quotes: how many\n"
"quotation marks of it stand before `start`. Returns (n records as int64: start, end, quotation marks, whether more than one comma\n"
"with white space stands before; the state at the end, in the same order; the place of a closing brace too many, or -1).");

PyObject *scan(PyObject *self, PyObject *args) {
    Py_buffer data;
    Py_ssize_t from;
    long long record_depth, depth, open, quotes;
    int in_string, escaped;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*nLLppLL", &data, &from, &record_depth, &depth, &in_string, &escaped, &open, &quotes))
        return NULL;
    /* Marks before `start` were counted from the beginning of the open record, which is where they count from again. */
    State state = {depth, 0, escaped, open, quotes, -1};
    state.in_string = (in_string - quotes) & 1;
    Records records = {NULL, 0, 0};
    PyObject *result = NULL;
    int done = 1;
    if (from < 0 || from > data.len || open >= from) {
        PyErr_SetString(PyExc_ValueError, "places that are not in the data");
    } else {
        Py_BEGIN_ALLOW_THREADS
        done = find_records(data.buf, from, data.len, record_depth, &state, &records);
        Py_END_ALLOW_THREADS
        if (done)
            result = Py_BuildValue("y#(LOOLL)L", records.n ? (const char *)records.all : "", records.n * (Py_ssize_t)sizeof(Record),
                                   (long long)state.depth, state.in_string ? Py_True : Py_False,
                                   state.escaped ? Py_True : Py_False, (long long)state.open, (long long)state.quotes,
                                   (long long)state.wrong);
        else
            PyErr_NoMemory();
    }
    PyMem_RawFree(records.all);
    PyBuffer_Release(&data);
    return result;
}
