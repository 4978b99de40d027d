/* Plain COCO annotations as columns: objects of the keys below, each at most once, none of them null, with a box of four numbers, and
   with polygons for a segmentation. */

#include "jsonscan.h"
#include "json.h"

enum { ID = 1, IMAGE_ID = 2, CATEGORY_ID = 4, BBOX = 8, AREA = 16, ISCROWD = 32, SEGMENTATION = 64 };
#define NEEDED (ID | IMAGE_ID | CATEGORY_ID | BBOX)

/* Flags of a record, as the caller gets them. */
enum { PLAIN = 1, HAS_AREA = 2, LONG_AREA = 4, HAS_CROWD = 8, IS_CROWD = 16 };

/* What is made of the records of one call; values and bounds have room for all numbers and lists that the text can hold. */
typedef struct {
    uint8_t *flags;   /* of each record */
    int64_t *ids;     /* id, image id and category id of each record */
    int32_t *shapes;  /* where the shapes of each record begin, and where the last ones end */
    int32_t *bounds;  /* where the values of each shape begin, and where the last ones end */
    double *values;   /* of the shapes: of each record its box, then its polygons */
    int32_t *area_bounds;
    char *areas;      /* texts */
    int32_t n_shapes, n_values, n_areas;
} Columns;

/* Take a list of one number or more to `values`. Returns how many, 0 when it is no such list. */
static int32_t take_list(Text *text, double *values, int32_t most) {
    int32_t n = 0;
    Written how;
    if (!take(text, '[')) return 0;
    do {
        if (n == most || !take_number(text, values + n, &how)) return 0;
        n++;
    } while (take(text, ','));
    return text->at < text->end && *text->at == ']' && text->at++ ? n : 0;
}

static int take_polygons(Text *text, Columns *out) {
    if (!take(text, '[')) return 0;
    if (text->at < text->end && *text->at == ']') {
        text->at++;
        return 1;
    }
    do {
        int32_t n = take_list(text, out->values + out->n_values, INT32_MAX);
        if (n < 6 || n % 2) return 0;
        out->n_values += n;
        out->bounds[++out->n_shapes] = out->n_values;
    } while (take(text, ','));
    return text->at < text->end && *text->at == ']' && text->at++;
}

/* Take the area as text; LONG_AREA: another one may stand for that number. */
static int take_area(Text *text, Columns *out, uint8_t *flags) {
    const char *start = text->at;
    double value;
    Written how;
    if (!take_number(text, &value, &how)) return 0;
    size_t length = (size_t)(text->at - start);
    *flags |= is_canonical(&how, value, text->at[-1]) ? HAS_AREA : HAS_AREA | LONG_AREA;
    memcpy(out->areas + out->n_areas, start, length);
    out->n_areas += (int32_t)length;
    return 1;
}

static int take_crowd(Text *text, uint8_t *flags) {
    if (text->at == text->end || (*text->at != '0' && *text->at != '1')) return 0;
    *flags |= *text->at++ == '1' ? HAS_CROWD | IS_CROWD : HAS_CROWD;
    return 1;
}

/* Take a key and the colon behind it. Returns which it is, 0: another one. */
static int take_key(Text *text) {
    if (text->at == text->end || *text->at++ != '"') return 0;
    const char *start = text->at;
    const char *close = memchr(start, '"', (size_t)(text->end - start));
    if (close == NULL) return 0;
    size_t length = (size_t)(close - start);
    text->at = close + 1;
    if (!take(text, ':')) return 0;
#define IS(name) (length == sizeof(name) - 1 && memcmp(start, name, sizeof(name) - 1) == 0)
    if (IS("id")) return ID;
    if (IS("bbox")) return BBOX;
    if (IS("area")) return AREA;
    if (IS("iscrowd")) return ISCROWD;
    if (IS("image_id")) return IMAGE_ID;
    if (IS("category_id")) return CATEGORY_ID;
    if (IS("segmentation")) return SEGMENTATION;
#undef IS
    return 0;
}

/* Take one record that is the whole text; 0 when it is not plain. */
static int take_record(Text text, Columns *out, int64_t *ids, uint8_t *flags) {
    double *box = out->values + out->n_values;
    int seen = 0;
    out->n_values += 4; /* the box comes first, wherever it stands in the record */
    out->bounds[++out->n_shapes] = out->n_values;
    if (!take(&text, '{')) return 0;
    do {
        int key = take_key(&text), found = 0;
        if (key == 0 || (seen & key)) return 0;
        seen |= key;
        switch (key) {
            case ID: found = take_integer(&text, &ids[0]); break;
            case IMAGE_ID: found = take_integer(&text, &ids[1]); break;
            case CATEGORY_ID: found = take_integer(&text, &ids[2]); break;
            case BBOX: found = take_list(&text, box, 4) == 4; break;
            case AREA: found = take_area(&text, out, flags); break;
            case ISCROWD: found = take_crowd(&text, flags); break;
            case SEGMENTATION: found = take_polygons(&text, out); break;
        }
        if (!found) return 0;
    } while (take(&text, ','));
    return text.at + 1 == text.end && *text.at == '}' && (seen & NEEDED) == NEEDED;
}

static void take_records(const char *data, const int64_t *starts, const int64_t *ends, Py_ssize_t n, Columns *out) {
    out->shapes[0] = out->bounds[0] = out->area_bounds[0] = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        Columns before = *out;
        Text text = {data + starts[i], data + ends[i]};
        uint8_t flags = 0;
        if (take_record(text, out, out->ids + 3 * i, &flags)) {
            out->flags[i] = flags | PLAIN;
        } else {
            *out = before;
            out->flags[i] = 0;
            memset(out->ids + 3 * i, 0, 3 * sizeof(int64_t));
        }
        out->shapes[i + 1] = out->n_shapes;
        out->area_bounds[i + 1] = out->n_areas;
    }
}

static Py_ssize_t count(const char *data, const int64_t *starts, const int64_t *ends, Py_ssize_t n, char c) {
    Py_ssize_t found = 0;
    for (Py_ssize_t i = 0; i < n; i++)
        for (const char *at = data + starts[i], *end = data + ends[i]; at < end; at++) found += *at == c;
    return found;
}

static PyObject *parse_annotations(const char *data, const int64_t *starts, const int64_t *ends, Py_ssize_t n) {
    Py_ssize_t numbers, lists;
    Py_BEGIN_ALLOW_THREADS
    /* A number has a comma or the end of its list behind it; a record may begin with room for a box that never comes. */
    lists = count(data, starts, ends, n, '[') + n;
    numbers = count(data, starts, ends, n, ',') + lists + 4 * n;
    Py_END_ALLOW_THREADS
    size_t sizes[] = {1, 3 * sizeof(int64_t), sizeof(int32_t), sizeof(int32_t), sizeof(double), sizeof(int32_t), 1};
    Py_ssize_t counts[] = {n, n, n + 1, lists + 1, numbers, n + 1, (MAX_NUMBER + 1) * n};
    PyObject *result = rooms(counts, sizes, 7);
    if (result == NULL) return NULL;
#define AT(i, type) ((type *)PyByteArray_AS_STRING(PyTuple_GET_ITEM(result, i)))
    Columns out = {AT(0, uint8_t), AT(1, int64_t), AT(2, int32_t), AT(3, int32_t), AT(4, double), AT(5, int32_t), AT(6, char), 0, 0, 0};
#undef AT
    Py_BEGIN_ALLOW_THREADS
    take_records(data, starts, ends, n, &out);
    Py_END_ALLOW_THREADS
    return result;
}

const char annotations_doc[] = PyDoc_STR(
"annotations(data, starts, ends)\n--\n\n"
"Columns of the plain COCO annotations data[starts[i]:ends[i]] (int64 each), as buffers:\n"
"flags (uint8: 1 plain, 2 has an area, 4 whose text may be another for that number, 8 has iscrowd, 16 which is 1);\n"
"id, image id, category id (int64, 3 each); offsets (int32) of their shapes; offsets of the values of shapes; values\n"
"(float64; of each record its box first); offsets of the texts of their areas; these texts. Records that are not plain have no shape and no area.");

PyObject *annotations(PyObject *self, PyObject *args) {
    (void)self;
    return with_records(args, parse_annotations);
}
