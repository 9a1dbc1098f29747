/* SPDX-License-Identifier: Apache-2.0 */
/* One all-reduce over the new staging memory before anybody trusts it: every rank stores to every
 * other and waits for what it stores. */
#ifndef LAMPREY_PLUGIN_SELFTEST_H
#define LAMPREY_PLUGIN_SELFTEST_H

#include "plugin/exchange.h"

/* On exchange's stream; waits for it. Every rank must have mapped all others. LAMPREY_ERROR_SYSTEM:
 * a store did not arrive in time or not as it was. */
enum lamprey_status lamprey_selftest(struct lamprey_exchange *exchange,
                                     const struct lamprey_agreed *agreed,
                                     struct lamprey_workspace *workspace);

#endif
