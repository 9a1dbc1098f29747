/* SPDX-License-Identifier: Apache-2.0 */
#include "topology/xml.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define BLANKS " \t\r\n"

enum {
    MAX_BYTES = 64 << 20,
    MAX_DEPTH = 64,
    MAX_NAME = 32,
    MAX_SET = 1 << 14,
};

/* An element's start or end. */
struct tag {
    char name[MAX_NAME];
    const char *attributes; /* behind the name */
    const char *end;        /* the > */
    bool closes;            /* </name> */
    bool is_empty;          /* <name/> */
};

struct scan {
    const char *path;
    const char *text;
    const struct lamprey_reason *reason;
    char open[MAX_DEPTH][MAX_NAME]; /* names of open elements; for objects, their types */
    bool is_object[MAX_DEPTH];
    int depth;
    int machines;
    int memories;
    int processors;
};

static int refuse(const struct scan *scan, const char *at, const char *what)
{
    size_t line = 1;
    for (const char *c = scan->text; c < at; c++) {
        line += *c == '\n';
    }
    return lamprey_reason_give(scan->reason, EIO, "%s is damaged at line %zu: %s", scan->path, line,
                               what);
}

/* The value of an attribute, up to its quote; NULL if the tag has none of that name. */
static const char *find_attribute(const struct tag *tag, const char *name, size_t *length)
{
    size_t name_length = strlen(name);
    for (const char *at = tag->attributes; at < tag->end;) {
        at += strspn(at, BLANKS);
        size_t own = strcspn(at, "=>" BLANKS);
        if (at + own + 1 >= tag->end || at[own] != '=' || at[own + 1] != '"') {
            return NULL;
        }
        const char *value = at + own + 2;
        *length = strcspn(value, "\"");
        if (own == name_length && memcmp(at, name, own) == 0) {
            return value;
        }
        at = value + *length + 1;
    }
    return NULL;
}

/* Attributes of the form name="value", and nothing else. */
static bool attributes_are_sound(const struct tag *tag)
{
    for (const char *at = tag->attributes; at < tag->end;) {
        size_t blanks = strspn(at, BLANKS);
        at += blanks;
        if (at >= tag->end || (*at == '/' && at + 1 == tag->end)) {
            return true;
        }
        size_t name =
            strspn(at, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_:-");
        if (blanks == 0 || name == 0 || at[name] != '=' || at[name + 1] != '"') {
            return false;
        }
        at += name + 2;
        at += strcspn(at, "\"<");
        if (*at != '"' || at >= tag->end) {
            return false;
        }
        at++;
    }
    return true;
}

/* The tag at <; its end is a > outside of quotes. */
static bool read_tag(const char *at, struct tag *tag)
{
    bool quoted = false;
    tag->closes = at[1] == '/';
    at += 1 + tag->closes;
    size_t length = strcspn(at, "/>" BLANKS);
    if (length == 0 || length >= sizeof(tag->name)) {
        return false;
    }
    memcpy(tag->name, at, length);
    tag->name[length] = '\0';
    tag->attributes = at + length;
    for (tag->end = tag->attributes; *tag->end != '\0' && (quoted || *tag->end != '>');
         tag->end++) {
        quoted ^= *tag->end == '"';
    }
    if (*tag->end == '\0') {
        return false;
    }
    tag->is_empty = tag->end[-1] == '/';
    return attributes_are_sound(tag);
}

/* Devices and notes have no sets, everything else has all of them. */
static bool has_no_sets(const char *type)
{
    static const char *const types[] = {"Bridge", "PCIDev", "OSDev", "Misc"};
    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++) {
        if (strcmp(type, types[i]) == 0) {
            return true;
        }
    }
    return false;
}

static const char *const sets[] = {"cpuset", "complete_cpuset", "nodeset", "complete_nodeset"};
enum { SETS = sizeof(sets) / sizeof(*sets) };

/* "0x0000000f", words separated by commas: "0xf...f,0x1,,0x00000001". */
static bool is_set(const char *text, size_t length)
{
    static const char endless[] = "0xf...f,";
    const char *end = text + length;
    if (length > MAX_SET) {
        return false;
    }
    if (length >= sizeof(endless) - 1 && strncmp(text, endless, sizeof(endless) - 1) == 0) {
        text += sizeof(endless) - 1;
    }
    while (text < end) {
        size_t digits = 0;
        if (strncmp(text, "0x", 2) == 0) {
            digits = strspn(text + 2, "0123456789abcdef");
            text += 2 + digits;
        }
        if (digits > 8 || (text < end && *text != ',')) {
            return false;
        }
        text++;
    }
    return length > 0;
}

/* What hwloc numbers bits by; without a number it takes the largest, and fills memory with zeros.
 */
static bool has_number(const struct tag *tag)
{
    size_t length = 0;
    const char *value = find_attribute(tag, "os_index", &length);
    return value != NULL && length > 0 && length < 6 && strspn(value, "0123456789") == length;
}

static int check_object(struct scan *scan, const struct tag *tag, char type[MAX_NAME])
{
    size_t length = 0;
    const char *value = find_attribute(tag, "type", &length);
    if (value == NULL || length == 0 || length >= MAX_NAME) {
        return refuse(scan, tag->end, "an object without a type");
    }
    memcpy(type, value, length);
    type[length] = '\0';
    bool is_machine = strcmp(type, "Machine") == 0;
    bool is_root = scan->depth == 1 || !scan->is_object[scan->depth - 1];
    if (is_machine != is_root || (is_machine && ++scan->machines > 1)) {
        return refuse(scan, tag->end, "one Machine must hold all other objects");
    }
    scan->memories += strcmp(type, "NUMANode") == 0;
    scan->processors += strcmp(type, "PU") == 0;
    bool bare = has_no_sets(type);
    if (!is_root && !bare && has_no_sets(scan->open[scan->depth - 1])) {
        return refuse(scan, tag->end, "processors or memory inside a device");
    }
    for (size_t i = 0; i < SETS; i++) {
        value = find_attribute(tag, sets[i], &length);
        if (bare != (value == NULL)) {
            return refuse(scan, tag->end,
                          bare ? "a device with a set of processors or memory"
                               : "an object without its sets of processors and memory");
        }
        if (value != NULL && !is_set(value, length)) {
            return refuse(scan, tag->end, "a set of processors or memory that makes no sense");
        }
    }
    if ((strcmp(type, "PU") == 0 || strcmp(type, "NUMANode") == 0) && !has_number(tag)) {
        return refuse(scan, tag->end, "a processor or memory without a number");
    }
    return 0;
}

static int take_tag(struct scan *scan, const struct tag *tag)
{
    char type[MAX_NAME];
    if (tag->closes) {
        bool fits =
            scan->depth > 0 &&
            strcmp(scan->is_object[scan->depth - 1] ? "object" : scan->open[scan->depth - 1],
                   tag->name) == 0;
        scan->depth -= fits;
        return fits ? 0 : refuse(scan, tag->end, "an end without a beginning");
    }
    bool is_object = strcmp(tag->name, "object") == 0;
    memcpy(type, tag->name, sizeof(type));
    if ((scan->depth == 0) != (strcmp(tag->name, "topology") == 0)) {
        return refuse(scan, tag->end, "a topology must hold all other elements");
    }
    int result = is_object ? check_object(scan, tag, type) : 0;
    if (result != 0 || tag->is_empty) {
        return result;
    }
    if (scan->depth == MAX_DEPTH) {
        return refuse(scan, tag->end, "too many elements inside each other");
    }
    memcpy(scan->open[scan->depth], type, sizeof(type));
    scan->is_object[scan->depth] = is_object;
    scan->depth++;
    return 0;
}

static int check_text(struct scan *scan)
{
    int result = 0;
    const char *at = scan->text;
    while (result == 0 && (at = strchr(at, '<')) != NULL) {
        struct tag tag;
        const char *behind = NULL;
        if (strncmp(at, "<!--", 4) == 0) {
            behind = strstr(at, "-->");
        } else if (at[1] == '?' || at[1] == '!') {
            behind = strchr(at, '>');
        } else if (read_tag(at, &tag)) {
            result = take_tag(scan, &tag);
            behind = tag.end;
        }
        if (behind == NULL) {
            return refuse(scan, at, "an element that makes no sense");
        }
        at = behind + 1;
    }
    if (result != 0) {
        return result;
    }
    if (scan->depth > 0) {
        return refuse(scan, scan->text + strlen(scan->text), "it breaks off");
    }
    if (scan->machines == 0 || scan->memories == 0 || scan->processors == 0) {
        return lamprey_reason_give(scan->reason, EIO, "%s is no topology: it has %s", scan->path,
                                   scan->machines == 0   ? "no Machine"
                                   : scan->memories == 0 ? "no NUMANode"
                                                         : "no PU");
    }
    return 0;
}

int lamprey_xml_check(const char *path, const struct lamprey_reason *reason)
{
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return lamprey_reason_give(reason, EIO, "cannot read %s: %s", path, strerror(errno));
    }
    size_t room = 1 << 16;
    size_t length = 0;
    char *text = malloc(room);
    for (size_t got = 1; text != NULL && got > 0 && length < MAX_BYTES;) {
        if (room - length < 2) {
            room *= 2;
            char *more = realloc(text, room);
            if (more == NULL) {
                free(text);
                text = NULL;
                break;
            }
            text = more;
        }
        got = fread(text + length, 1, room - length - 1, file);
        length += got;
    }
    int result = 0;
    if (text == NULL) {
        result = lamprey_reason_give(reason, ENOMEM, "out of memory for %s", path);
    } else if (ferror(file)) {
        result = lamprey_reason_give(reason, EIO, "cannot read %s: %s", path, strerror(errno));
    } else {
        text[length] = '\0';
        struct scan *scan = calloc(1, sizeof(*scan));
        if (scan == NULL) {
            result = lamprey_reason_give(reason, ENOMEM, "out of memory for %s", path);
        } else if (length >= MAX_BYTES || strlen(text) != length) {
            result = lamprey_reason_give(reason, EIO, "%s is no topology: it is %s", path,
                                         length >= MAX_BYTES ? "too large" : "no text");
        } else {
            scan->path = path;
            scan->text = text;
            scan->reason = reason;
            result = check_text(scan);
        }
        free(scan);
    }
    free(text);
    fclose(file);
    return result;
}
