//! The Python module `ironstep._core`. The only folder that names PyO3 or NumPy.

mod array;
mod checkpoint;
mod dense;
mod image;
mod layers;
mod overlap;
mod plan;
mod schedule;
mod tensor;
mod trace;
mod tree;

use pyo3::prelude::*;

/// The compiled core of ironstep. Private: use the package.
#[pymodule(gil_used = false)]
mod _core {
    use pyo3::exceptions::PyValueError;
    use pyo3::prelude::*;
    use pyo3::types::PyDict;

    #[pymodule_export]
    use super::checkpoint::{load_safetensors, save_safetensors};
    #[pymodule_export]
    use super::image::{
        augment, augment_masks, augment_mix, draw_beta, draw_words, elementwise, outside_unit, uniforms,
    };
    #[pymodule_export]
    use super::layers::{
        activation, check_output, cross_entropy, dropout_draw, dropout_mask, norm_channels, norm_channels_backward,
        norm_rows, norm_rows_backward, philox_block, pointwise_loss, scale, sum_of_squares, tree_sum,
        use_instruction_set,
    };
    #[pymodule_export]
    use super::plan::{Plan, Values};
    #[pymodule_export]
    use super::schedule::{PySchedule, permutation};
    #[pymodule_export]
    use super::tensor::{TensorViews, tensor_view};
    #[pymodule_export]
    use super::trace::Trace;
    #[pymodule_export]
    use super::tree::Tree;
    #[pymodule_export]
    #[allow(non_upper_case_globals, reason = "Python's name")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
    use crate::optim::RULES;
    use crate::parallel;
    use crate::simd::Isa;

    /// The number of threads that large calls use.
    #[pyfunction]
    fn get_num_threads() -> usize {
        parallel::num_threads()
    }

    /// Sets the number of threads; 0 returns to the default.
    #[pyfunction]
    #[pyo3(signature = (n, /))]
    fn set_num_threads(n: i64) -> PyResult<()> {
        let n = usize::try_from(n)
            .ok()
            .filter(|&n| n <= parallel::MAX_THREADS)
            .ok_or_else(|| PyValueError::new_err(format!("n must be from 0 (the default) to 1024, got {n}")))?;
        parallel::set_num_threads(n);
        Ok(())
    }

    /// The instruction sets that this CPU has, worst first.
    #[pyfunction]
    fn instruction_sets() -> Vec<&'static str> {
        Isa::available().into_iter().map(Isa::name).collect()
    }

    /// All rules: name -> (hyperparameters, state arrays, scalar state with its first values).
    #[pyfunction]
    fn rules(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
        let rules = PyDict::new(py);
        for rule in RULES {
            rules.set_item(rule.name(), (rule.hyper().to_vec(), rule.states().to_vec(), rule.scalars().to_vec()))?;
        }
        Ok(rules)
    }

    /// x ** y in f64 as the core computes it, the same bits on every platform.
    #[pyfunction]
    #[pyo3(signature = (x, y, /))]
    fn pow(x: f64, y: f64) -> f64 {
        libm::pow(x, y)
    }
}
