/* The parts of JSON that plain records are made of. Each take_ function takes something from the front of a text, and returns
   whether it is there; where not, the text is left anywhere. */

#ifndef RAYDS_JSON_H
#define RAYDS_JSON_H

#include <locale.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __APPLE__
#include <xlocale.h>
#endif

#define MAX_EXACT_DIGITS 15 /* numbers of so many digits, and powers of ten up to 1e22, are doubles without rounding */
#define MAX_NUMBER 63       /* bytes of a number */

static const double TEN_TO[] = {1e0, 1e1, 1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15};

extern locale_t c_locale; /* the decimal point of numbers, whatever the program's locale */

/* Bytes at[0..end[ that are still to be read. */
typedef struct {
    const char *at, *end;
} Text;

/* How a number is written: its digits (of both parts, zeros before them too), those behind the point, whether it has an exponent. */
typedef struct {
    int digits, decimals, exponent;
} Written;

static inline int is_digit(char c) { return c >= '0' && c <= '9'; }

static inline void skip_space(Text *text) {
    while (text->at < text->end &&
           (*text->at == ' ' || *text->at == '\n' || *text->at == '\r' || *text->at == '\t'))
        text->at++;
}

/* Take a character with white space around it. */
static inline int take(Text *text, char c) {
    skip_space(text);
    if (text->at == text->end || *text->at != c) return 0;
    text->at++;
    skip_space(text);
    return 1;
}

/* Take a JSON number. It is what strtod gives, by the shorter way where that is exact. */
static inline int take_number(Text *text, double *value, Written *how) {
    const char *start = text->at, *at = start, *end = text->end;
    uint64_t all = 0;
    int negative = at < end && *at == '-';
    at += negative;
    const char *first = at;
    while (at < end && is_digit(*at)) all = all * 10 + (uint64_t)(*at++ - '0');
    ptrdiff_t before = at - first, decimals = 0;
    if (before == 0 || (before > 1 && *first == '0')) return 0;
    if (at < end && *at == '.') {
        const char *point = at++;
        while (at < end && is_digit(*at)) all = all * 10 + (uint64_t)(*at++ - '0');
        decimals = at - point - 1;
        if (decimals == 0) return 0;
    }
    int exponent = at < end && (*at == 'e' || *at == 'E');
    if (exponent) {
        at++;
        if (at < end && (*at == '+' || *at == '-')) at++;
        const char *power = at;
        while (at < end && is_digit(*at)) at++;
        if (at == power) return 0;
    }
    if (at - start > MAX_NUMBER) return 0;
    *how = (Written){(int)(before + decimals), (int)decimals, exponent};
    if (!exponent && how->digits <= MAX_EXACT_DIGITS) {
        double number = (double)all / TEN_TO[decimals];
        *value = negative ? -number : number;
    } else {
        char copy[MAX_NUMBER + 1];
        memcpy(copy, start, (size_t)(at - start));
        copy[at - start] = 0;
        *value = strtod_l(copy, NULL, c_locale);
    }
    text->at = at;
    return isfinite(*value) && !(negative && all == 0 && decimals == 0); /* parsers differ in -0 */
}

/* Take an integer of at most 15 digits. */
static inline int take_integer(Text *text, int64_t *value) {
    int negative = text->at < text->end && *text->at == '-';
    text->at += negative;
    const char *first = text->at;
    int64_t all = 0;
    while (text->at < text->end && is_digit(*text->at) && text->at - first <= MAX_EXACT_DIGITS)
        all = all * 10 + (*text->at++ - '0');
    ptrdiff_t digits = text->at - first;
    if (digits == 0 || digits > MAX_EXACT_DIGITS || (digits > 1 && *first == '0') || (negative && all == 0))
        return 0;
    *value = negative ? -all : all;
    return text->at < text->end && *text->at != '.' && *text->at != 'e' && *text->at != 'E';
}

/* Whether no other text may stand for a number: it is the one that all printers would give. */
static inline int is_canonical(const Written *how, double value, char last) {
    if (how->exponent || how->digits > MAX_EXACT_DIGITS) return 0;
    return how->decimals == 0 || ((how->decimals == 1 || last != '0') && (value == 0 || fabs(value) >= 0.001));
}

/* Take a string without escapes. *start, *length: of what is between the quotation marks. */
static inline int take_string(Text *text, const char **start, size_t *length) {
    if (text->at == text->end || *text->at != '"') return 0;
    *start = ++text->at;
    while (text->at < text->end && *text->at != '"' && *text->at != '\\' && (unsigned char)*text->at >= 0x20) text->at++;
    *length = (size_t)(text->at - *start);
    return text->at < text->end && *text->at++ == '"';
}

static inline int take_word(Text *text, const char *word) {
    size_t length = strlen(word);
    if ((size_t)(text->end - text->at) < length || memcmp(text->at, word, length) != 0) return 0;
    text->at += length;
    return 1;
}

#endif
