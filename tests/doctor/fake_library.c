/* SPDX-License-Identifier: Apache-2.0 */
/* In place of an NCCL or of liblamprey.so, as the doctor sees them: a version, from a variable, and
 * nothing else. */
#include <stdlib.h>

__attribute__((visibility("default"))) int FAKE_SYMBOL(int *version);

int FAKE_SYMBOL(int *version)
{
    const char *text = getenv("LAMPREY_TEST_VERSION");
    *version = text != NULL ? atoi(text) : 0;
    return 0;
}

__attribute__((constructor)) static void load(void)
{
    if (getenv("LAMPREY_TEST_CRASH") != NULL) {
        abort();
    }
}
