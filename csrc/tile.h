/*
 * tile.h - the bit planes of one tile, by vectors. A part of planes.c, which includes it once for each width of them.
 *
 * WIDTH says how wide, 16 or 32 bytes, and TARGET what a function that uses them must declare. The vectors are GCC's and
 * clang's own, who make SSE2, AVX2 or NEON of them.
 *
 * Bytes are moved first, then bits. Of 128 words, which are 8 a row, the bytes become columns: vector j of a byte has that
 * byte of the words j, j + 8, ..., j + 120. Bit p of 8 such vectors is then plane p, once each 8 by 8 bits are flipped.
 * Vectors of 32 bytes have two lanes with 128 words in each.
 */
#define OF_WIDTH(name, width) name##_##width
#define NAMED(name, width) OF_WIDTH(name, width)
#define vec NAMED(vec, WIDTH)
#define vec16 NAMED(vec16, WIDTH)
#define load NAMED(load, WIDTH)
#define store NAMED(store, WIDTH)
#define zip NAMED(zip, WIDTH)
#define flip_bytes NAMED(flip_bytes, WIDTH)
#define swap_bits NAMED(swap_bits, WIDTH)
#define flip_bits NAMED(flip_bits, WIDTH)
#define by_lanes NAMED(by_lanes, WIDTH)
#define get_columns NAMED(get_columns, WIDTH)
#define put_columns NAMED(put_columns, WIDTH)
#define split_words NAMED(split_words, WIDTH)
#define join_words NAMED(join_words, WIDTH)
#define split_tile NAMED(split_tile, WIDTH)
#define join_tile NAMED(join_tile, WIDTH)

#define INLINE TARGET inline __attribute__((always_inline))
#define PARTS (LINE / WIDTH) /* of a tile: a vector of each of its lines */

#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (vec){__VA_ARGS__})
#endif
#define ROW8(a) a, a + 1, a + 2, a + 3, a + 4, a + 5, a + 6, a + 7
#define ROW16(a) ROW8(a), ROW8(a + 8)
#define ZIP8(a, b)                                                                                                     \
    a, b, a + 1, b + 1, a + 2, b + 2, a + 3, b + 3, a + 4, b + 4, a + 5, b + 5, a + 6, b + 6, a + 7, b + 7

typedef uint8_t vec __attribute__((vector_size(WIDTH)));
typedef uint16_t vec16 __attribute__((vector_size(WIDTH)));

static INLINE vec load(const uint8_t *at)
{
    vec v;
    memcpy(&v, at, sizeof v);
    return v;
}

static INLINE void store(uint8_t *at, vec v)
{
    memcpy(at, &v, sizeof v);
}

/* Row i with row i + 8, byte by byte. */
static INLINE void zip(vec *out, const vec *in)
{
    for (int i = 0; i < 8; i++) {
#if WIDTH == 16
        out[2 * i] = PICK(in[i], in[i + 8], ZIP8(0, 16));
        out[2 * i + 1] = PICK(in[i], in[i + 8], ZIP8(8, 24));
#else
        out[2 * i] = PICK(in[i], in[i + 8], ZIP8(0, 32), ZIP8(16, 48));
        out[2 * i + 1] = PICK(in[i], in[i + 8], ZIP8(8, 40), ZIP8(24, 56));
#endif
    }
}

/* 16 rows of 16 bytes become columns: a zip turns the number of row and column, 8 bits, by one bit. */
static INLINE void flip_bytes(vec *rows)
{
    vec other[16];
    zip(other, rows);
    zip(rows, other);
    zip(other, rows);
    zip(rows, other);
}

/* The high bits of `low` change places with the low ones of `high`, of every `distance` bits. */
static INLINE void swap_bits(vec *low, vec *high, int distance, uint8_t mask)
{
    vec differ = ((vec)((vec16)*low >> distance) ^ *high) & mask;
    *high ^= differ;
    *low ^= (vec)((vec16)differ << distance);
}

/* Bit p of vector j becomes bit j of vector p, in every byte. */
static INLINE void flip_bits(vec *v)
{
    for (int j = 0; j < 4; j++)
        swap_bits(v + j, v + j + 4, 4, 0x0f);
    for (int j = 0; j < 8; j += 4) {
        swap_bits(v + j, v + j + 2, 2, 0x33);
        swap_bits(v + j + 1, v + j + 3, 2, 0x33);
    }
    for (int j = 0; j < 8; j += 2)
        swap_bits(v + j, v + j + 1, 1, 0x55);
}

/* Two pieces in a row of the first 128 words, and the same two of the next 128, become two vectors that have one place's
 * pieces in their lanes; and back. */
static INLINE void by_lanes(vec *first, vec *second, vec a, vec b)
{
#if WIDTH == 16
    *first = a;
    *second = b;
#else
    *first = PICK(a, b, ROW16(0), ROW16(32));
    *second = PICK(a, b, ROW16(16), ROW16(48));
#endif
}

/* What by_lanes takes lies this far apart, in words of so many bytes. */
#define APART(bytes) (WIDTH == 16 ? 16 : 128 * (bytes))

/* A row of 8 words is one piece of 16 bytes, or two, whose columns are flipped apart. */
static INLINE void get_columns(vec columns[][8], const uint8_t *raw, unsigned bytes)
{
    vec rows[2][16];
    unsigned pieces = bytes / 2;
    for (unsigned k = 0; k < 16 * pieces; k += 2)
        by_lanes(&rows[k % pieces][k / pieces], &rows[(k + 1) % pieces][(k + 1) / pieces], load(raw + 16 * k),
                 load(raw + 16 * k + APART(bytes)));
    for (unsigned piece = 0; piece < pieces; piece++) {
        flip_bytes(rows[piece]);
        for (unsigned i = 0; i < 16; i++)
            columns[i % bytes][(16 * piece + i) / bytes] = rows[piece][i];
    }
}

static INLINE void put_columns(uint8_t *raw, vec columns[][8], unsigned bytes)
{
    vec rows[2][16], a, b;
    unsigned pieces = bytes / 2;
    for (unsigned piece = 0; piece < pieces; piece++) {
        for (unsigned i = 0; i < 16; i++)
            rows[piece][i] = columns[i % bytes][(16 * piece + i) / bytes];
        flip_bytes(rows[piece]);
    }
    for (unsigned k = 0; k < 16 * pieces; k += 2) {
        by_lanes(&a, &b, rows[k % pieces][k / pieces], rows[(k + 1) % pieces][(k + 1) / pieces]);
        store(raw + 16 * k, a);
        store(raw + 16 * k + APART(bytes), b);
    }
}

/* The highest plane comes first, as a Gray code needs the bit above. */
static INLINE void split_words(uint8_t *planes, size_t stride, const uint8_t *raw, unsigned word)
{
    vec columns[PARTS][4][8], above[PARTS] = {0};
    for (unsigned part = 0; part < PARTS; part++)
        get_columns(columns[part], raw + WIDTH * word * part, word / 8);
    for (unsigned b = word / 8; b-- > 0;) {
        for (unsigned part = 0; part < PARTS; part++)
            flip_bits(columns[part][b]);
        for (unsigned p = 8 * b + 8; p-- > 8 * b;)
            for (unsigned part = 0; part < PARTS; part++) {
                vec bits = columns[part][b][p - 8 * b];
                store(planes + p * stride + WIDTH * part, is_gray(p, word) ? bits ^ above[part] : bits);
                above[part] = bits;
            }
    }
}

static INLINE void join_words(uint8_t *raw, const uint8_t *planes, size_t stride, unsigned word)
{
    vec columns[PARTS][4][8], above[PARTS] = {0};
    for (unsigned b = word / 8; b-- > 0;) {
        for (unsigned p = 8 * b + 8; p-- > 8 * b;)
            for (unsigned part = 0; part < PARTS; part++) {
                vec bits = load(planes + p * stride + WIDTH * part);
                above[part] = is_gray(p, word) ? bits ^ above[part] : bits;
                columns[part][b][p - 8 * b] = above[part];
            }
        for (unsigned part = 0; part < PARTS; part++)
            flip_bits(columns[part][b]);
    }
    for (unsigned part = 0; part < PARTS; part++)
        put_columns(raw + WIDTH * word * part, columns[part], word / 8);
}

static TARGET void split_tile(uint8_t *planes, size_t stride, const uint8_t *raw, unsigned word)
{
    if (word == 32)
        split_words(planes, stride, raw, 32);
    else
        split_words(planes, stride, raw, 16);
}

static TARGET void join_tile(uint8_t *raw, const uint8_t *planes, size_t stride, unsigned word)
{
    if (word == 32)
        join_words(raw, planes, stride, 32);
    else
        join_words(raw, planes, stride, 16);
}

#undef OF_WIDTH
#undef NAMED
#undef vec
#undef vec16
#undef load
#undef store
#undef zip
#undef flip_bytes
#undef swap_bits
#undef flip_bits
#undef by_lanes
#undef get_columns
#undef put_columns
#undef split_words
#undef join_words
#undef split_tile
#undef join_tile
#undef INLINE
#undef PARTS
#undef PICK
#undef ROW8
#undef ROW16
#undef ZIP8
#undef APART
#undef WIDTH
#undef TARGET
