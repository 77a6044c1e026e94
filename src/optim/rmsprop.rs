//! RMSProp, plain or centred, without and with momentum.

use super::{Decay, Rule, hyper};
use crate::float::Real;

hyper! {
    /// Of all four forms.
    pub struct RmsPropHyper {
        /// Learning rate.
        lr,
        /// Decay of the averages.
        alpha,
        /// Keeps the division finite.
        eps,
        /// 1: `sqrt(v + eps)` (Keras, optax, TensorFlow), 0: `sqrt(v) + eps` (torch).
        eps_in_sqrt,
        /// Of the momentum buffer; unused by the forms without.
        momentum,
        /// 1: the learning rate is inside the buffer (Keras, TensorFlow), 0: outside (torch).
        lr_in_momentum,
        /// Weight decay.
        weight_decay,
        /// 1: decoupled, 0: coupled (L2).
        decoupled_weight_decay,
    }
}

/// The scalars and pieces that the four forms share.
#[derive(Clone, Copy, Debug)]
struct Common<T> {
    decay: Decay<T>,
    lr: T,
    alpha: T,
    rest: T,
    eps: T,
    eps_in_sqrt: bool,
    momentum: T,
    lr_in_momentum: bool,
}

impl<T: Real> Common<T> {
    fn new(h: &RmsPropHyper) -> Self {
        Common {
            decay: Decay::new(h.lr, h.weight_decay, h.decoupled_weight_decay),
            lr: T::from_f64(h.lr),
            alpha: T::from_f64(h.alpha),
            rest: T::from_f64(1.0 - h.alpha),
            eps: T::from_f64(h.eps),
            eps_in_sqrt: h.eps_in_sqrt != 0.0,
            momentum: T::from_f64(h.momentum),
            lr_in_momentum: h.lr_in_momentum != 0.0,
        }
    }

    #[inline(always)]
    fn average(&self, old: T, x: T) -> T {
        self.alpha * old + self.rest * x
    }

    #[inline(always)]
    fn root(&self, v: T) -> T {
        if self.eps_in_sqrt { (v + self.eps).sqrt() } else { v.sqrt() + self.eps }
    }

    /// `v - a a`, which rounding can make negative: not below 0.
    #[inline(always)]
    fn centered(v: T, a: T) -> T {
        (v - a * a).maximum(T::ZERO)
    }

    #[inline(always)]
    fn momentum(&self, p: T, d: T, buf: T) -> (T, T) {
        let lr_d = self.lr * d;
        let buf = self.momentum * buf + if self.lr_in_momentum { lr_d } else { d };
        (p - if self.lr_in_momentum { buf } else { self.lr * buf }, buf)
    }
}

macro_rules! form {
    ($(#[$doc:meta])* $name:ident $text:literal [$n:literal] $states:expr, |$rule:ident, $p:ident, $g:ident, $s:pat_param| $body:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name<T>(Common<T>);

        impl<T: Real> Rule<T, $n> for $name<T> {
            type Hyper = RmsPropHyper;
            const NAME: &'static str = $text;
            const STATES: [&'static str; $n] = $states;

            fn new(h: &RmsPropHyper, _step: u64, _scalars: &mut [f64]) -> Self {
                $name(Common::new(h))
            }

            #[inline(always)]
            fn update(&self, $p: T, $g: T, $s: [T; $n]) -> (T, [T; $n]) {
                let $rule = &self.0;
                let ($p, $g) = $rule.decay.apply($p, $g);
                $body
            }
        }
    };
}

form! {
    /// Tieleman & Hinton 2012 (Coursera lecture 6.5). state = [v]:
    /// `v = alpha v + (1 - alpha) (g g)`, `p - lr (g / (sqrt(v) + eps))`.
    RmsProp "rmsprop" [1] ["square_avg"], |rule, p, g, [v]| {
        let v = rule.average(v, g * g);
        (p - rule.lr * (g / rule.root(v)), [v])
    }
}

form! {
    /// With momentum. state = [v, buf]: `buf = momentum buf + g / (sqrt(v) + eps)`, `p - lr buf`.
    RmsPropMomentum "rmsprop_momentum" [2] ["square_avg", "momentum_buffer"], |rule, p, g, [v, buf]| {
        let v = rule.average(v, g * g);
        let (p, buf) = rule.momentum(p, g / rule.root(v), buf);
        (p, [v, buf])
    }
}

form! {
    /// Centred, Graves 2013 (arXiv 1308.0850, eq. 38-45). state = [v, a]:
    /// `a = alpha a + (1 - alpha) g`, and `v - a a` (not below 0) in the place of `v`.
    CenteredRmsProp "centered_rmsprop" [2] ["square_avg", "grad_avg"], |rule, p, g, [v, a]| {
        let (v, a) = (rule.average(v, g * g), rule.average(a, g));
        (p - rule.lr * (g / rule.root(Common::centered(v, a))), [v, a])
    }
}

form! {
    /// Centred, with momentum. state = [v, a, buf].
    CenteredRmsPropMomentum "centered_rmsprop_momentum" [3] ["square_avg", "grad_avg", "momentum_buffer"],
    |rule, p, g, [v, a, buf]| {
        let (v, a) = (rule.average(v, g * g), rule.average(a, g));
        let (p, buf) = rule.momentum(p, g / rule.root(Common::centered(v, a)), buf);
        (p, [v, a, buf])
    }
}
