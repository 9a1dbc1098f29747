/* SPDX-License-Identifier: Apache-2.0 */
/* Prints README.md's table of settings from the library's own rows. */
#include <stdio.h>

#include "plugin/config.h"

int main(void)
{
    const struct lamprey_setting *row = NULL;
    for (size_t i = 0; (row = lamprey_config_row(i)) != NULL; i++) {
        const char *shown = row->default_text[0] != '\0' ? row->default_text : "none";
        printf("| `%s` | %s | %s |\n", row->name, shown, row->help);
    }
    return 0;
}
