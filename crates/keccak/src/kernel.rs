//! Which kernels there are, and which one hashes: the processor decides, an environment variable may overrule it.
//!
//! Invariants:
//! 1. [`Kernel::active`] is decided once per process and is available on the processor.

use crate::scalar::Scalar;
#[cfg(target_arch = "x86_64")]
use crate::{avx2::Avx2, avx512::Avx512};
use std::{ffi::OsStr, fmt, str::FromStr, sync::OnceLock};

/// The environment variable that forces a kernel: `avx512`, `avx2` or `scalar`.
pub const KERNEL_VARIABLE: &str = "FOLDGATE_KECCAK";

/// One instruction set's way to compute keccak256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kernel {
    /// One input at a time in general-purpose registers; on every processor.
    Scalar,
    /// Four inputs at a time; needs AVX2.
    Avx2,
    /// Eight inputs at a time; needs AVX-512 F and BW.
    Avx512,
}

impl Kernel {
    /// Every kernel that this crate knows, fastest first.
    pub const ALL: [Self; 3] = [Self::Avx512, Self::Avx2, Self::Scalar];

    /// The kernels that this processor can run, fastest first; ends with [`Kernel::Scalar`].
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|kernel| kernel.is_available())
    }

    /// The fastest kernel that this processor can run.
    pub fn best() -> Self {
        Self::available().next().unwrap_or(Self::Scalar)
    }

    /// The kernel behind the crate's free functions: the one that [`KERNEL_VARIABLE`] names, else [`Kernel::best`].
    ///
    /// Decided at the first call and kept for the life of the process. A variable that is set to something else or to
    /// a kernel which this processor lacks is passed over here; [`Kernel::from_env`] reports it.
    #[inline]
    pub fn active() -> Self {
        static ACTIVE: OnceLock<Kernel> = OnceLock::new();
        *ACTIVE.get_or_init(|| Self::from_env().unwrap_or_else(|_| Self::best()))
    }

    /// Reads [`KERNEL_VARIABLE`] anew: the kernel it names, or [`Kernel::best`] if it is not set.
    ///
    /// A program calls this at its start, so that a misspelt setting is refused and not passed over in silence.
    ///
    /// # Errors
    /// [`KernelError::Unknown`] if the variable holds something else than a kernel's name (an empty value included),
    /// [`KernelError::Unavailable`] if this processor cannot run the kernel.
    pub fn from_env() -> Result<Self, KernelError> {
        Self::choose(std::env::var_os(KERNEL_VARIABLE).as_deref())
    }

    /// What [`Kernel::from_env`] makes of the variable's value.
    pub(crate) fn choose(value: Option<&OsStr>) -> Result<Self, KernelError> {
        match value {
            None => Ok(Self::best()),
            Some(value) => value.to_string_lossy().parse::<Self>()?.check_available(),
        }
    }

    /// Passes the kernel on if this processor can run it.
    pub(crate) fn check_available(self) -> Result<Self, KernelError> {
        if self.is_available() { Ok(self) } else { Err(KernelError::Unavailable { got: self, best: Self::best() }) }
    }

    /// Whether this processor can run the kernel.
    #[inline]
    pub fn is_available(self) -> bool {
        Engine::new(self).is_some()
    }

    /// How many inputs the kernel hashes at a time.
    pub const fn lanes(self) -> usize {
        match self {
            Self::Avx512 => 8,
            Self::Avx2 => 4,
            Self::Scalar => 1,
        }
    }

    /// The name by which [`KERNEL_VARIABLE`] knows the kernel.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Scalar => "scalar",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Kernel {
    type Err = KernelError;

    /// Parses a kernel's [name](Kernel::name), in lower or upper case.
    fn from_str(name: &str) -> Result<Self, KernelError> {
        Self::ALL
            .into_iter()
            .find(|kernel| kernel.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| KernelError::Unknown { got: name.to_owned() })
    }
}

/// Why a kernel cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// No kernel has this name.
    #[error("unknown keccak kernel: got {got:?}, expected avx512, avx2 or scalar")]
    Unknown {
        /// The name as it was given; what is not UTF-8 in it is replaced.
        got: String,
    },
    /// The processor lacks the instructions of this kernel.
    #[error("keccak kernel not available on this processor: got {got}, expected {best} or a slower one")]
    Unavailable {
        /// The kernel that was asked for.
        got: Kernel,
        /// The fastest kernel that this processor can run.
        best: Kernel,
    },
}

/// A kernel together with the proof that this processor can run it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Engine {
    Scalar(Scalar),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Engine {
    /// The engine of a kernel, if this processor can run it.
    #[inline]
    pub(crate) fn new(kernel: Kernel) -> Option<Self> {
        match kernel {
            Kernel::Scalar => Some(Self::Scalar(Scalar::detect())),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => Avx2::detect().map(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 => Avx512::detect().map(Self::Avx512),
            #[cfg(not(target_arch = "x86_64"))]
            Kernel::Avx2 | Kernel::Avx512 => None,
        }
    }

    /// The kernel that this engine runs.
    pub(crate) const fn kernel(self) -> Kernel {
        match self {
            Self::Scalar(_) => Kernel::Scalar,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => Kernel::Avx2,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => Kernel::Avx512,
        }
    }
}
