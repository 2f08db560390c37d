/* Sets of pages against a plain array of bools, edges first. */
#include "region/page_set.h"

#include <string.h>

#include "tests/check.h"

struct model {
    bool member[ZC_UNIT_PAGES];
};

static void check_same(const struct zc_page_set *set, const struct model *model) {
    uint32_t count = 0;
    for (uint32_t page = 0; page < ZC_UNIT_PAGES; page++) {
        CHECK_EQUAL(set->words[page / 64] >> page % 64 & 1, model->member[page]);
        count += model->member[page];
    }
    CHECK_EQUAL(zc_page_set_count(set), count);
}

static int model_gap(const struct model *model, uint32_t count) {
    for (uint32_t page = 0, run = 0; page < ZC_UNIT_PAGES; page++) {
        run = model->member[page] ? 0 : run + 1;
        if (run == count)
            return (int)(page + 1 - count);
    }
    return -1;
}

static uint32_t model_next(const struct model *model, uint32_t page, bool member) {
    while (page < ZC_UNIT_PAGES && model->member[page] != member)
        page++;
    return page;
}

static void edges_of_words(void) {
    static const uint32_t firsts[] = {0, 1, 62, 63, 64, 65, 127, 128, 255, 256, 447, 448, 510, 511};
    static const uint32_t counts[] = {1, 2, 63, 64, 65, 128, 255, 256, 257, 511, 512};
    for (size_t i = 0; i < sizeof firsts / sizeof *firsts; i++)
        for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
            uint32_t first = firsts[i], count = counts[k];
            if (first + count > ZC_UNIT_PAGES)
                continue;
            struct zc_page_set set = {{0}};
            struct model model = {{0}};
            zc_page_set_add(&set, first, count);
            memset(model.member + first, true, count);
            check_same(&set, &model);
            CHECK_EQUAL(zc_page_set_find_gap(&set, 1), model_gap(&model, 1));
            if (count < ZC_UNIT_PAGES)
                CHECK_EQUAL(zc_page_set_find_gap(&set, ZC_UNIT_PAGES - count), model_gap(&model, ZC_UNIT_PAGES - count));

            memset(&set, 0xff, sizeof set);
            memset(&model, true, sizeof model);
            zc_page_set_remove(&set, first, count);
            memset(model.member + first, false, count);
            check_same(&set, &model);
            CHECK_EQUAL(zc_page_set_find_gap(&set, count), first);
            CHECK_EQUAL(count < ZC_UNIT_PAGES ? zc_page_set_find_gap(&set, count + 1) : -1, -1);
        }
}

static void anything_like_the_model(void) {
    struct zc_page_set set = {{0}};
    struct model model = {{0}};
    uint32_t random = 12345;
    for (int round = 0; round < 20000; round++) {
        random = random * 1664525 + 1013904223;
        uint32_t first = random >> 8 & 511, count = 1 + (random >> 17) % (random >> 31 ? 4 : 200);
        bool add = random >> 5 & 1;
        if (first + count > ZC_UNIT_PAGES)
            count = ZC_UNIT_PAGES - first;
        (add ? zc_page_set_add : zc_page_set_remove)(&set, first, count);
        memset(model.member + first, add, count);
        check_same(&set, &model);
        CHECK_EQUAL(zc_page_set_find_gap(&set, count), model_gap(&model, count));
        CHECK_EQUAL(zc_page_set_next(&set, first, true), model_next(&model, first, true));
        CHECK_EQUAL(zc_page_set_next(&set, first, false), model_next(&model, first, false));
    }
}

static void union_and_difference(void) {
    struct zc_page_set a = {{0}}, b = {{0}};
    zc_page_set_add(&a, 10, 100);
    zc_page_set_add(&b, 60, 100);
    struct zc_page_set both = zc_page_set_union(&a, &b);
    CHECK_EQUAL(zc_page_set_count(&both), 150);
    zc_page_set_subtract(&both, &a);
    CHECK_EQUAL(zc_page_set_count(&both), 50);
    CHECK_EQUAL(zc_page_set_next(&both, 0, true), 110);
}

int main(void) {
    RUN(edges_of_words);
    RUN(anything_like_the_model);
    RUN(union_and_difference);
    return 0;
}
