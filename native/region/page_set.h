/* A set of the 512 pages of one unit. */
#ifndef ZCRPC_PAGE_SET_H
#define ZCRPC_PAGE_SET_H

#include "region/region_map.h"

#define ZC_UNIT_PAGES (ZC_UNIT / ZC_PAGE)
#define ZC_PAGE_SET_WORDS (ZC_UNIT_PAGES / 64)

struct zc_page_set {
    uint64_t words[ZC_PAGE_SET_WORDS];
};

/* The bits of one word that lie in [first, first + count), counted from the set's beginning. */
static inline uint64_t zc_page_set_mask(uint32_t word, uint32_t first, uint32_t count) {
    uint32_t begin = word * 64, end = begin + 64, last = first + count;
    uint32_t from = first > begin ? first - begin : 0, to = last < end ? last - begin : 64;
    return (to == 64 ? ~0ull : (1ull << to) - 1) & ~((1ull << from) - 1);
}

static inline void zc_page_set_add(struct zc_page_set *set, uint32_t first, uint32_t count) {
    for (uint32_t word = first / 64; count > 0 && word <= (first + count - 1) / 64; word++)
        set->words[word] |= zc_page_set_mask(word, first, count);
}

static inline void zc_page_set_remove(struct zc_page_set *set, uint32_t first, uint32_t count) {
    for (uint32_t word = first / 64; count > 0 && word <= (first + count - 1) / 64; word++)
        set->words[word] &= ~zc_page_set_mask(word, first, count);
}

static inline struct zc_page_set zc_page_set_union(const struct zc_page_set *a, const struct zc_page_set *b) {
    struct zc_page_set both;
    for (uint32_t word = 0; word < ZC_PAGE_SET_WORDS; word++)
        both.words[word] = a->words[word] | b->words[word];
    return both;
}

static inline void zc_page_set_subtract(struct zc_page_set *set, const struct zc_page_set *removed) {
    for (uint32_t word = 0; word < ZC_PAGE_SET_WORDS; word++)
        set->words[word] &= ~removed->words[word];
}

static inline uint32_t zc_page_set_count(const struct zc_page_set *set) {
    uint32_t count = 0;
    for (uint32_t word = 0; word < ZC_PAGE_SET_WORDS; word++)
        count += (uint32_t)__builtin_popcountll(set->words[word]);
    return count;
}

/* The first page from `page` on that is in the set (or, with `member` false, is not); ZC_UNIT_PAGES if there is none. */
static inline uint32_t zc_page_set_next(const struct zc_page_set *set, uint32_t page, bool member) {
    for (uint32_t word = page / 64; word < ZC_PAGE_SET_WORDS; word++) {
        uint64_t bits = member ? set->words[word] : ~set->words[word];
        if (word == page / 64)
            bits &= ~0ull << page % 64;
        if (bits != 0)
            return word * 64 + (uint32_t)__builtin_ctzll(bits);
    }
    return ZC_UNIT_PAGES;
}

/* The first run of `count` > 0 pages that are not in the set, or -1. */
static inline int zc_page_set_find_gap(const struct zc_page_set *set, uint32_t count) {
    for (uint32_t first = 0; (first = zc_page_set_next(set, first, false)) + count <= ZC_UNIT_PAGES;) {
        uint32_t end = zc_page_set_next(set, first, true);
        if (end - first >= count)
            return (int)first;
        first = end;
    }
    return -1;
}

#endif
