/* SPDX-License-Identifier: Apache-2.0 */
/* A picture: GPUs in two rows around their switches, or, where there are none, in a circle. */
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "topology/pci.h"
#include "topology/show.h"

enum {
    BOX_WIDTH = 200,
    BOX_HEIGHT = 84,
    GAP = 24,
    MARGIN = 24,
    TOP = 84, /* below the title's two lines */
    BAR_HEIGHT = 56,
    LINK_LENGTH = 84, /* from a row to the switches */
    LINE = 17,
    CHARACTER = 7, /* about, at font size 13 */
};

struct point {
    double x;
    double y;
};

struct picture {
    FILE *out;
    const struct lamprey_machine *machine;
    struct point *centres; /* of the GPUs' boxes */
    bool switched;
    double width;
    double height;
};

/* Any text as XML: what is not printable ASCII becomes a question mark. */
static void put_escaped(FILE *out, const char *text)
{
    for (; *text != '\0'; text++) {
        switch (*text) {
        case '&':
            fputs("&amp;", out);
            break;
        case '<':
            fputs("&lt;", out);
            break;
        case '>':
            fputs("&gt;", out);
            break;
        case '"':
            fputs("&quot;", out);
            break;
        default:
            fputc(*text >= 0x20 && *text < 0x7f ? *text : '?', out);
        }
    }
}

static void put_text(FILE *out, double x, double y, const char *style, const char *text)
{
    fprintf(out, "  <text x=\"%.0f\" y=\"%.0f\"%s>", x, y, style);
    put_escaped(out, text);
    fputs("</text>\n", out);
}

static void put_line(FILE *out, struct point a, struct point b)
{
    fprintf(out,
            "  <line x1=\"%.0f\" y1=\"%.0f\" x2=\"%.0f\" y2=\"%.0f\" stroke=\"#4a7a00\" "
            "stroke-width=\"2\"/>\n",
            a.x, a.y, b.x, b.y);
}

/* On a white ground, since it lies on a line. */
static void put_label(FILE *out, struct point at, const char *text)
{
    double width = (double)strlen(text) * CHARACTER + 8;
    fprintf(out, "  <rect x=\"%.0f\" y=\"%.0f\" width=\"%.0f\" height=\"%d\" fill=\"#ffffff\"/>\n",
            at.x - width / 2, at.y - LINE / 2.0, width, LINE);
    put_text(out, at.x, at.y + 5, " text-anchor=\"middle\"", text);
}

static const char *gigabytes(uint64_t mbps, char text[LAMPREY_SHOW_TEXT])
{
    snprintf(text, LAMPREY_SHOW_TEXT, "%.1f GB/s", (double)mbps / 1000);
    return text;
}

static const struct lamprey_machine_pair *pair_of(const struct picture *picture, size_t a, size_t b)
{
    return &picture->machine->pairs[a * picture->machine->ngpus + b];
}

static bool on_switches(const struct picture *picture, size_t gpu)
{
    bool found = picture->machine->gpus[gpu].links.kind == LAMPREY_NVLINK_SWITCH;
    for (size_t other = 0; other < picture->machine->ngpus; other++) {
        found = found || pair_of(picture, gpu, other)->kind == LAMPREY_PAIR_SWITCH;
    }
    return found;
}

static void place(struct picture *picture)
{
    size_t n = picture->machine->ngpus;
    if (picture->switched) {
        size_t columns = (n + 1) / 2;
        picture->width = 2.0 * MARGIN + (double)columns * (BOX_WIDTH + GAP) - GAP;
        picture->height = TOP + 2 * (BOX_HEIGHT + LINK_LENGTH) + BAR_HEIGHT + MARGIN;
        for (size_t i = 0; i < n; i++) {
            picture->centres[i].x =
                MARGIN + (double)(i % columns) * (BOX_WIDTH + GAP) + BOX_WIDTH / 2.0;
            picture->centres[i].y = TOP + BOX_HEIGHT / 2.0 +
                                    (i < columns ? 0 : BOX_HEIGHT + BAR_HEIGHT + 2 * LINK_LENGTH);
        }
    } else {
        /* Neighbours stay a label's width apart. */
        double radius = n < 2 ? 0 : (BOX_WIDTH + 140) / 2.0 / sin(M_PI / (double)n);
        double turn = 2 * M_PI / (double)(n > 0 ? n : 1);
        double middle_x = MARGIN + BOX_WIDTH / 2.0 + radius;
        double middle_y = TOP + BOX_HEIGHT / 2.0 + radius;
        picture->width = 2 * middle_x;
        picture->height = middle_y + radius + BOX_HEIGHT / 2.0 + MARGIN;
        for (size_t i = 0; i < n; i++) {
            double angle = -M_PI / 2 - turn / 2 + turn * (double)i;
            picture->centres[i].x = middle_x + radius * cos(angle);
            picture->centres[i].y = middle_y + radius * sin(angle);
        }
    }
}

static void draw_gpu(const struct picture *picture, size_t index)
{
    const struct lamprey_machine_gpu *gpu = &picture->machine->gpus[index];
    const struct lamprey_gpu_links *links = &gpu->links;
    FILE *out = picture->out;
    double left = picture->centres[index].x - BOX_WIDTH / 2.0;
    double top = picture->centres[index].y - BOX_HEIGHT / 2.0;
    const char *fill = links->kind == LAMPREY_NVLINK_UNKNOWN || links->mig != 0 ? "#e0e0e0"
                       : links->kind == LAMPREY_NVLINK_NONE                     ? "#f6dcc8"
                                                                                : "#dcefc0";
    char text[160];
    char pci[LAMPREY_PCI_TEXT];
    fprintf(out,
            "  <rect x=\"%.0f\" y=\"%.0f\" width=\"%d\" height=\"%d\" rx=\"6\" fill=\"%s\" "
            "stroke=\"#333333\"/>\n",
            left, top, BOX_WIDTH, BOX_HEIGHT, fill);
    left += 10;
    top += 20;
    snprintf(text, sizeof(text), "GPU %zu  %s", index, lamprey_pci_text(gpu->pci_id, pci));
    put_text(out, left, top, " font-weight=\"bold\"", text);
    put_text(out, left, top + LINE, "", gpu->model[0] != '\0' ? gpu->model : "unknown model");
    snprintf(text, sizeof(text), "sm %s%s", gpu->sm[0] != '\0' ? gpu->sm : "?",
             links->mig != 0 ? ", MIG on" : "");
    if (gpu->numa >= 0) {
        snprintf(text + strlen(text), sizeof(text) - strlen(text), ", NUMA %d", gpu->numa);
    }
    put_text(out, left, top + 2 * LINE, "", text);
    if (links->kind == LAMPREY_NVLINK_UNKNOWN || links->kind == LAMPREY_NVLINK_NONE) {
        snprintf(text, sizeof(text), "%s",
                 links->kind == LAMPREY_NVLINK_NONE ? "no NVLink" : "NVLinks unknown");
    } else {
        char speed[LAMPREY_SHOW_TEXT];
        snprintf(text, sizeof(text), "%u x %s", links->links_active,
                 gigabytes(links->link_mbps, speed));
    }
    put_text(out, left, top + 3 * LINE, "", text);
}

static void draw_direct_link(const struct picture *picture, size_t a, size_t b)
{
    char text[LAMPREY_SHOW_TEXT];
    size_t n = picture->machine->ngpus;
    struct point from = picture->centres[a];
    struct point to = picture->centres[b];
    /* Lines between neighbours are labelled in the middle, others nearer to one end: they cross. */
    double along = b == a + 1 || (a == 0 && b == n - 1) ? 0.5 : 0.36;
    struct point at = {from.x + (to.x - from.x) * along, from.y + (to.y - from.y) * along};
    put_line(picture->out, from, to);
    put_label(picture->out, at, gigabytes(pair_of(picture, a, b)->mbps, text));
}

static void draw_switch_link(const struct picture *picture, size_t index)
{
    const struct lamprey_gpu_links *links = &picture->machine->gpus[index].links;
    struct point from = picture->centres[index];
    bool above = from.y < TOP + BOX_HEIGHT;
    from.y += above ? BOX_HEIGHT / 2.0 : -BOX_HEIGHT / 2.0;
    struct point to = {from.x, from.y + (above ? LINK_LENGTH : -LINK_LENGTH)};
    struct point at = {from.x, (from.y + to.y) / 2};
    char text[LAMPREY_SHOW_TEXT];
    put_line(picture->out, from, to);
    put_label(picture->out, at, gigabytes((uint64_t)links->links_active * links->link_mbps, text));
}

static void draw_switches(const struct picture *picture)
{
    char fabric[LAMPREY_SHOW_TEXT] = "";
    double top = TOP + BOX_HEIGHT + LINK_LENGTH;
    double middle = picture->width / 2;
    for (size_t i = 0; i < picture->machine->ngpus && fabric[0] == '\0'; i++) {
        if (on_switches(picture, i)) {
            lamprey_show_fabric(&picture->machine->gpus[i].links, fabric);
        }
    }
    fprintf(picture->out,
            "  <rect x=\"%d\" y=\"%.0f\" width=\"%.0f\" height=\"%d\" rx=\"6\" fill=\"#c9ddf5\" "
            "stroke=\"#333333\"/>\n",
            MARGIN, top, picture->width - 2 * MARGIN, BAR_HEIGHT);
    put_text(picture->out, middle, top + 24, " text-anchor=\"middle\" font-weight=\"bold\"",
             "NVSwitch");
    if (strcmp(fabric, "-") != 0) {
        char text[LAMPREY_SHOW_TEXT + 16];
        snprintf(text, sizeof(text), "fabric: %s", fabric);
        put_text(picture->out, middle, top + 24 + LINE, " text-anchor=\"middle\"", text);
    }
}

static void draw(const struct picture *picture, const struct lamprey_verdict *verdict)
{
    size_t n = picture->machine->ngpus;
    char text[sizeof(verdict->reason) + 64];
    snprintf(text, sizeof(text), "%zu GPU%s, NVLink domain: %s", n, n == 1 ? "" : "s",
             lamprey_domain_name(verdict->domain));
    put_text(picture->out, MARGIN, 32, " font-size=\"18\" font-weight=\"bold\"", text);
    snprintf(text, sizeof(text), "%s%s",
             verdict->served ? "served by Lamprey" : "left to NCCL: ", verdict->reason);
    put_text(picture->out, MARGIN, 56, "", text);
    for (size_t a = 0; a < n; a++) {
        for (size_t b = a + 1; b < n; b++) {
            if (pair_of(picture, a, b)->kind == LAMPREY_PAIR_DIRECT) {
                draw_direct_link(picture, a, b);
            }
        }
    }
    for (size_t i = 0; i < n; i++) {
        if (on_switches(picture, i)) {
            draw_switch_link(picture, i);
        }
        draw_gpu(picture, i);
    }
    if (picture->switched) {
        draw_switches(picture);
    }
}

int lamprey_show_machine_svg(FILE *out, const struct lamprey_machine *machine,
                             const struct lamprey_verdict *verdict)
{
    struct picture picture = {.out = out, .machine = machine};
    picture.centres = calloc(machine->ngpus + 1, sizeof(*picture.centres));
    if (picture.centres == NULL) {
        return ENOMEM;
    }
    for (size_t i = 0; i < machine->ngpus; i++) {
        picture.switched = picture.switched || on_switches(&picture, i);
    }
    place(&picture);
    /* The title's lines may be longer than the drawing is wide. */
    double text_width = 2.0 * MARGIN + (double)(strlen(verdict->reason) + 24) * CHARACTER;
    if (picture.width < text_width) {
        for (size_t i = 0; i < machine->ngpus; i++) {
            picture.centres[i].x += (text_width - picture.width) / 2;
        }
        picture.width = text_width;
    }
    fprintf(out,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" "
            "viewBox=\"0 0 %.0f %.0f\" font-family=\"sans-serif\" font-size=\"13\">\n"
            "  <rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n",
            picture.width, picture.height, picture.width, picture.height);
    draw(&picture, verdict);
    fputs("</svg>\n", out);
    free(picture.centres);
    return 0;
}
