/* The memory traffic of a normalisation over rows as plain loops, with ordinary stores: what the memory allows.
   `layers.py` compiles it with `cc -O3 -march=native -fopenmp`. */
void forward(const float *restrict x, float *restrict y, long n, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long i = 0; i < n; i++) y[i] = 0.9f * x[i];
}

void backward(const float *restrict x, const float *restrict dy, float *restrict dx, long n, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long i = 0; i < n; i++) dx[i] = 0.9f * dy[i] - 0.1f * x[i];
}
