/* The memory traffic of AdamW as a plain loop: four arrays read, three written, no root and no division.
   What the memory allows; `peers.py` compiles it with `cc -O3 -march=native -fopenmp`. */
void update(float *restrict p, const float *restrict g, float *restrict m, float *restrict v, long n) {
#pragma omp parallel for schedule(static)
    for (long i = 0; i < n; i++) {
        m[i] = 0.9f * m[i] + 0.1f * g[i];
        v[i] = 0.9f * v[i] + 0.1f * g[i];
        p[i] = p[i] - 1e-3f * (m[i] + v[i]);
    }
}
