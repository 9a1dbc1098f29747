/* SPDX-License-Identifier: Apache-2.0 */
/* Prints the settings from the library's own rows: as README.md's table, or with --text for people,
 * with what this environment sets. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/config.h"

enum { WIDTH = 96, INDENT = 4 };

static void print_wrapped(const char *text)
{
    while (*text != '\0') {
        size_t length = strlen(text);
        if (length > WIDTH - INDENT) {
            length = WIDTH - INDENT;
            while (length > 1 && text[length] != ' ') {
                length--;
            }
        }
        printf("%*s%.*s\n", INDENT, "", (int)length, text);
        text += length;
        text += strspn(text, " ");
    }
}

static void print_text(const struct lamprey_setting *row, const char *default_text)
{
    const char *value = getenv(row->name);
    printf("%s (default: %s%s%s)\n", row->name, default_text, value != NULL ? "; here: " : "",
           value != NULL ? value : "");
    print_wrapped(row->help);
}

int main(int argc, char **argv)
{
    bool text = argc == 2 && strcmp(argv[1], "--text") == 0;
    if (argc > 1 && !text) {
        fprintf(stderr, "usage: %s [--text]\n", argv[0]);
        return 2;
    }
    const struct lamprey_setting *row = NULL;
    for (size_t i = 0; (row = lamprey_config_row(i)) != NULL; i++) {
        const char *shown = row->default_text[0] != '\0' ? row->default_text : "none";
        if (text) {
            print_text(row, shown);
        } else {
            printf("| `%s` | %s | %s |\n", row->name, shown, row->help);
        }
    }
    unsetenv("LAMPREY_STATS"); /* or the library's part in here prints its counters */
    return 0;
}
