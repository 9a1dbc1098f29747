/* SPDX-License-Identifier: Apache-2.0 */
#ifndef LAMPREY_PLUGIN_FIRST_COPY_H
#define LAMPREY_PLUGIN_FIRST_COPY_H

/* 1 if no object loaded before this one is Lamprey too (preloaded and plugged in from two files,
 * say); else 0, and this copy has to stay passive. The answer never changes: later copies come
 * later in the list. Thread-safe, callable from a constructor. */
int lamprey_first_copy(void);

/* A function of the copy that was loaded first; NULL if that is this one or hasn't got it. */
void *lamprey_first_copy_function(const char *name);

#endif
