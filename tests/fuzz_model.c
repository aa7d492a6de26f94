/* model.bin with bytes changed, cut off or added, read by model.c again and again under sanitizers:

       fuzz_model FILE COUNT SEED

   Whatever open_model accepts must encode a text and write on without touching memory that isn't the model's. */

#define NO_MAIN
#include "../exchange/model.c"

#include <stdio.h>
#include <stdlib.h>

static uint64_t state;
static uint32_t random_below(uint32_t n) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(((state >> 32) * n) >> 32);
}

static void *aligned(uint64_t bytes) {
  void *p = NULL;
  if (posix_memalign(&p, 64, bytes)) exit(3);
  memset(p, 0, bytes);
  return p;
}

static void ignore(const char *text, uint32_t n) { (void)text; (void)n; }

static int try(const unsigned char *file, uint64_t size) {
  static GPT g;
  uint64_t byte;
  uint32_t bad;
  int32_t ids[64];
  if (open_model(&g, file, size, &byte)) return byte <= size ? 0 : exit(4), 0;
  uint64_t need = lay_out(&g, NULL, 1);
  if (need > 64 << 20) return 1;
  void *arena = aligned(need), *room = aligned(12ull * g.h.vocab_size);
  lay_out(&g, arena, 1);
  static const char said[] = "It's a<|endoftext|>  text\n\n of 12345 \xc3\xa9\xf0\x9f\x98\x80!";
  int32_t n = encode(&g, said, sizeof said - 1, ids, &bad), *window = aligned(4ull * (64 + g.h.block_size));
  if (n < 0) n = 1, ids[0] = 0;
  memcpy(window, ids, 4 * (size_t)n);
  char held[3];
  Choice c = {0.8, 0.9, 5, (uint32_t *)((char *)room + 8ull * g.h.vocab_size), room, seeded(1),
              end_token(&g)};
  Text text = {"ab", held, ignore, {0}, 0, 0, 0, 0, 0, 0};
  generate(&g, &c, &text, window, (uint32_t)n, 4, g.h.block_size, NULL);
  free(arena); free(room); free(window);
  return 1;
}

int main(int argc, char **argv) {
  FILE *file = argc == 4 ? fopen(argv[1], "rb") : NULL;
  if (!file) return 5;
  fseek(file, 0, SEEK_END);
  uint32_t size = (uint32_t)ftell(file), accepted = 0, count = (uint32_t)atoi(argv[2]);
  unsigned char *whole = aligned(size);
  rewind(file);
  if (fread(whole, 1, size, file) != size || !try(whole, size)) return 6;
  state = (uint64_t)atoi(argv[3]);
  for (uint32_t i = 0; i < count; i++) {
    uint32_t kind = random_below(8), n = kind == 0 ? random_below(size) : kind == 1 ? size + 1 + random_below(99) : size;
    unsigned char *file_i = aligned(n ? n : 1);
    memcpy(file_i, whole, n < size ? n : size);
    for (uint32_t k = random_below(4); k-- > 0 && n;) {
      uint32_t at = random_below(2) ? random_below(n < 128 ? n : 128) : random_below(n);
      static const unsigned char values[] = {0, 1, 2, 3, 127, 128, 255};
      file_i[at] = random_below(2) ? values[random_below(7)] : (unsigned char)random_below(256);
    }
    accepted += (uint32_t)try(file_i, n);
    free(file_i);
  }
  free(whole);
  printf("%u of %u accepted\n", accepted, count);
  return 0;
}
