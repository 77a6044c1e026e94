//! The kernels without Python: nanoseconds per element and bytes per second of every rule on every instruction set, beside
//! a copy, a triad and a plain AdamW loop of the same traffic, measured in the same run.
//!
//! `cargo bench --no-default-features --bench kernels [-- RULE ...]`

use std::hint::black_box;
use std::time::Instant;

use ironstep::float::{Bf16, DType, Element};
use ironstep::optim::{Engine, Group, Leaf, MAX_STATES, Operands, Options, RULES, Work};
use ironstep::parallel;
use ironstep::simd::Isa;

/// Hyperparameters that exercise the rule as people use it.
fn value(name: &str) -> f64 {
    match name {
        "lr" | "trust_coefficient" => 1e-3,
        "beta1" | "momentum" | "rho" => 0.9,
        "beta2" => 0.999,
        "alpha" => 0.99,
        "eps" => 1e-8,
        "weight_decay" => 1e-2,
        "momentum_decay" => 4e-3,
        "max_param_norm" => f64::INFINITY,
        "bias_correction" | "always_adapt" | "weight_decay_in_ratio" | "decoupled_weight_decay" => 1.0,
        _ => 0.0,
    }
}

/// Arrays that live as long as the leaf that points to them.
struct Case {
    _arrays: Vec<Vec<f32>>,
    leaf: Vec<Leaf>,
    work: Work,
    bytes: usize,
}

fn case(engine: &dyn Engine, dtype: DType, n: usize) -> Case {
    let states = engine.states().len();
    let mut arrays: Vec<Vec<f32>> =
        (0..states + 2).map(|k| (0..n).map(|i| ((i * 7 + k) % 1000) as f32 * 1e-3 + 1e-3).collect()).collect();
    if dtype == DType::Bf16 {
        // Parameter and gradient use half of their array.
        for array in &mut arrays[..2] {
            let halves: Vec<u32> = array.iter().map(|&x| u32::from(Bf16::narrow(x).0)).collect();
            for (i, out) in array[..n / 2].iter_mut().enumerate() {
                *out = f32::from_bits(halves[2 * i] | halves[2 * i + 1] << 16);
            }
        }
    }
    let address = arrays.iter_mut().map(|a| a.as_mut_ptr().cast::<u8>()).collect::<Vec<_>>();
    let s = std::array::from_fn(|k| if k < states { address[2 + k] } else { std::ptr::null_mut() });
    let _: [*mut u8; MAX_STATES] = s;
    let leaf = vec![Leaf { len: n, rule: 0, operands: Operands::Direct { dtype, p: address[0], g: address[1], s } }];
    // The parameter is read and written, the gradient read, each state read and written; two-pass rules read twice.
    let bytes = n * (3 * dtype.size() + states * 8);
    Case { _arrays: arrays, leaf, work: Work::new([n]), bytes }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Seconds of one call, the median over about 0.2 s of them.
fn time(mut f: impl FnMut()) -> f64 {
    f();
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < 5 || start.elapsed().as_secs_f64() < 0.2 {
        let one = Instant::now();
        f();
        times.push(one.elapsed().as_secs_f64());
    }
    median(times)
}

fn bench(engine: &dyn Engine, dtype: DType, n: usize, isa: Isa, threads: usize) -> (f64, f64) {
    let mut case = case(engine, dtype, n);
    let hyper: Vec<f64> = engine.hyper().iter().map(|name| value(name)).collect();
    let mut scalars: Vec<f64> = engine.scalars().iter().map(|&(_, first)| first).collect();
    let options = Options { isa, threads, ..Options::default() };
    let mut step = 0;
    let seconds = time(|| {
        step += 1;
        let mut groups = [Group { step, maximize: false, hyper: &hyper, scalars: &mut scalars }];
        // SAFETY: the arrays of `case` have `n` elements, are distinct, and nobody else uses them.
        black_box(unsafe { engine.step(&mut groups, &case.leaf, &case.work, &options) });
    });
    case.leaf.clear();
    (seconds / n as f64 * 1e9, case.bytes as f64 / seconds / 1e9)
}

/// STREAM-like references over `n` floats on all threads: bytes per second of a copy, and of `a[i] += c * b[i]`.
fn stream(n: usize, threads: usize) -> (f64, f64) {
    let (mut a, b) = (vec![1f32; n], vec![2f32; n]);
    let chunks: Vec<(std::sync::Mutex<&mut [f32]>, &[f32])> =
        a.chunks_mut(parallel::CHUNK).map(std::sync::Mutex::new).zip(b.chunks(parallel::CHUNK)).collect();
    let each = |f: &(dyn Fn(&mut [f32], &[f32]) + Sync)| {
        time(|| {
            parallel::for_each(chunks.len(), threads, true, |i| {
                f(&mut chunks[i].0.lock().unwrap(), chunks[i].1);
            });
        })
    };
    let copy = each(&|a, b| a.copy_from_slice(b));
    let triad = each(&|a, b| a.iter_mut().zip(b).for_each(|(a, b)| *a += 0.5 * b));
    ((8 * n) as f64 / copy / 1e9, (12 * n) as f64 / triad / 1e9)
}

#[allow(clippy::print_stdout, clippy::disallowed_macros, reason = "a bench prints")]
fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let threads = parallel::num_threads();
    let (small, large) = (1 << 14, 1 << 24);
    let (copy, triad) = stream(large, threads);
    println!("{threads} threads; 16 Mi f32: copy {copy:.1} GB/s, a += c b {triad:.1} GB/s\n");
    println!(
        "{:<26} {:<6} {:<9} {:>14} {:>14} {:>10}",
        "rule", "stored", "isa", "16 Ki, 1 thread", "16 Mi, all", "of a += c b"
    );
    for engine in RULES {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == engine.name()) {
            continue;
        }
        for dtype in [DType::F32, DType::Bf16] {
            for isa in Isa::available() {
                let (warm, _) = bench(*engine, dtype, small, isa, 1);
                let (cold, rate) = bench(*engine, dtype, large, isa, threads);
                println!(
                    "{:<26} {:<6} {:<9} {:>9.3} ns/el {:>8.3} ns/el {:>5.1} GB/s {:>4.2}",
                    engine.name(),
                    dtype.name().replace("float", "f"),
                    isa.name(),
                    warm,
                    cold,
                    rate,
                    rate / triad
                );
            }
        }
    }
}
