/* Plain COCO images as columns: no member but the attributes may be a list or an object. */

#include "jsonscan.h"
#include "json.h"

#define MAX_MEMBERS 24
#define EXTRA_HEAD "{\"coco\":{"
#define EXTRA_TAIL "}}"

enum { HAS_WIDTH = 1, HAS_HEIGHT = 2, HAS_EXTRA = 4 };
enum { IMAGE_KEY = 1, WIDTH_KEY = 2, HEIGHT_KEY = 4, NAME_KEY = 8 };

/* key[0..key_length[ and its value, as they are written. */
typedef struct {
    const char *key, *value;
    size_t key_length, value_length;
} Member;

typedef struct {
    uint8_t *flags;
    int64_t *ids;
    int32_t *sizes; /* width, height of each */
    int32_t *name_bounds, *extra_bounds;
    char *names, *extras;
    int32_t n_names, n_extras;
} Images;

/* Take a value that is no list and no object, and that all printers would write as it is. */
static int take_plain_value(Text *text, Member *member) {
    const char *inner;
    size_t length;
    double value;
    Written how;
    member->value = text->at;
    if (text->at == text->end) return 0;
    int found = *text->at == '"' ? take_string(text, &inner, &length)
                : *text->at == 't' ? take_word(text, "true")
                : *text->at == 'f' ? take_word(text, "false")
                : *text->at == 'n' ? take_word(text, "null")
                                   : take_number(text, &value, &how) && is_canonical(&how, value, text->at[-1]);
    member->value_length = (size_t)(text->at - member->value);
    return found;
}

static int compare_keys(const Member *a, const Member *b) {
    size_t length = a->key_length < b->key_length ? a->key_length : b->key_length;
    int order = memcmp(a->key, b->key, length);
    return order ? order : (a->key_length > b->key_length) - (a->key_length < b->key_length);
}

/* Add a member in the order of keys. Returns 0 when there is one of that key, or too many. */
static int add_member(Member *members, int *n, Member member) {
    if (*n == MAX_MEMBERS) return 0;
    int at = (*n)++;
    for (; at > 0; at--) {
        int order = compare_keys(&members[at - 1], &member);
        if (order == 0) return 0;
        if (order < 0) break;
        members[at] = members[at - 1];
    }
    members[at] = member;
    return 1;
}

static void append(Images *out, const char *part, size_t length) {
    memcpy(out->extras + out->n_extras, part, length);
    out->n_extras += (int32_t)length;
}

static void write_members(const Member *members, int n, Images *out) {
    append(out, EXTRA_HEAD, sizeof(EXTRA_HEAD) - 1);
    for (int i = 0; i < n; i++) {
        if (i) append(out, ",", 1);
        append(out, members[i].key - 1, members[i].key_length + 2); /* with its quotation marks */
        append(out, ":", 1);
        append(out, members[i].value, members[i].value_length);
    }
    append(out, EXTRA_TAIL, sizeof(EXTRA_TAIL) - 1);
}

static int take_size(Text *text, int32_t *size) {
    int64_t value;
    if (!take_integer(text, &value) || value < INT32_MIN || value > INT32_MAX) return 0;
    *size = (int32_t)value;
    return 1;
}

static int take_image(Text text, Images *out, int64_t *id, int32_t *sizes, uint8_t *flags) {
    Member members[MAX_MEMBERS];
    int n = 0, seen = 0;
    *flags = 0;
    sizes[0] = sizes[1] = 0;
    if (!take(&text, '{')) return 0;
    do {
        Member member;
        if (!take_string(&text, &member.key, &member.key_length) || !member.key_length || !take(&text, ':')) return 0;
#define IS(name) (member.key_length == sizeof(name) - 1 && memcmp(member.key, name, sizeof(name) - 1) == 0)
        int key = IS("id") ? IMAGE_KEY : IS("width") ? WIDTH_KEY : IS("height") ? HEIGHT_KEY : IS("file_name") ? NAME_KEY : 0;
        if ((seen & key) || IS("attributes")) return 0;
#undef IS
        seen |= key;
        const char *name;
        size_t length;
        switch (key) {
            case IMAGE_KEY:
                if (!take_integer(&text, id)) return 0;
                break;
            case WIDTH_KEY:
                if (!take_size(&text, &sizes[0])) return 0;
                *flags |= HAS_WIDTH;
                break;
            case HEIGHT_KEY:
                if (!take_size(&text, &sizes[1])) return 0;
                *flags |= HAS_HEIGHT;
                break;
            case NAME_KEY:
                if (!take_string(&text, &name, &length)) return 0;
                memcpy(out->names + out->n_names, name, length);
                out->n_names += (int32_t)length;
                break;
            default:
                if (!take_plain_value(&text, &member) || !add_member(members, &n, member)) return 0;
        }
    } while (take(&text, ','));
    if (text.at + 1 != text.end || *text.at != '}' || (seen & (IMAGE_KEY | NAME_KEY)) != (IMAGE_KEY | NAME_KEY)) return 0;
    if (n) {
        write_members(members, n, out);
        *flags |= HAS_EXTRA;
    }
    return 1;
}

/* Take all records; 0 when one is not plain. */
static int take_images(const char *data, const int64_t *starts, const int64_t *ends, Py_ssize_t n, Images *out) {
    out->name_bounds[0] = out->extra_bounds[0] = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        Text text = {data + starts[i], data + ends[i]};
        if (!take_image(text, out, out->ids + i, out->sizes + 2 * i, out->flags + i)) return 0;
        out->name_bounds[i + 1] = out->n_names;
        out->extra_bounds[i + 1] = out->n_extras;
    }
    return 1;
}

static PyObject *parse_images(const char *data, const int64_t *starts, const int64_t *ends, Py_ssize_t n) {
    Py_ssize_t bytes = 0;
    for (Py_ssize_t i = 0; i < n; i++) bytes += ends[i] - starts[i];
    size_t sizes[] = {1, sizeof(int64_t), 2 * sizeof(int32_t), sizeof(int32_t), 1, sizeof(int32_t), 1};
    Py_ssize_t counts[] = {n, n, n, n + 1, bytes, n + 1, bytes + n * (Py_ssize_t)(sizeof(EXTRA_HEAD) + sizeof(EXTRA_TAIL))};
    PyObject *result = rooms(counts, sizes, 7);
    if (result == NULL) return NULL;
#define AT(i, type) ((type *)PyByteArray_AS_STRING(PyTuple_GET_ITEM(result, i)))
    Images out = {AT(0, uint8_t), AT(1, int64_t), AT(2, int32_t), AT(3, int32_t), AT(5, int32_t), AT(4, char), AT(6, char), 0, 0};
#undef AT
    int plain;
    Py_BEGIN_ALLOW_THREADS
    plain = take_images(data, starts, ends, n, &out);
    Py_END_ALLOW_THREADS
    if (plain) return result;
    Py_DECREF(result);
    Py_RETURN_NONE;
}

const char images_doc[] = PyDoc_STR(
"images(data, starts, ends)\n--\n\n"
"Columns of the COCO images data[starts[i]:ends[i]] (int64 each), as buffers; None when one of them is not plain: flags (uint8: 1\n"
"has a width, 2 a height, 4 other members); ids (int64); width, height (int32, 2 each); offsets (int32) of the file names; the\n"
"names; offsets of the other members, which are JSON as {\"coco\":{...}} by ascending key; these texts. Texts may not be UTF-8.");

PyObject *images(PyObject *self, PyObject *args) {
    (void)self;
    return with_records(args, parse_images);
}
