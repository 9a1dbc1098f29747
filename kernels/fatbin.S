/* SPDX-License-Identifier: Apache-2.0 */
    .section .rodata
    .macro embedded name, file
    .balign 16
    .globl \name
    .hidden \name
    .type \name, %object
\name:
    .incbin "\file"
    .size \name, . - \name
    .endm
    embedded lamprey_fatbin, LAMPREY_FATBIN
    embedded lamprey_row_fatbin, LAMPREY_ROW_FATBIN
    .section .note.GNU-stack, "", %progbits
