//! The checker's locks and cells, with the faces of those of the product.

use std::{
    ops::{Deref, DerefMut},
    ptr,
};

pub(crate) use loom::sync::atomic::AtomicBool;
use loom::sync::atomic::{AtomicPtr, Ordering};

#[derive(Debug)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

/// Empty only while its owner waits.
pub(crate) struct Guard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> Guard<'_, T> {
        Guard(Some(self.0.lock().unwrap()))
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().unwrap()
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().unwrap()
    }
}

#[derive(Debug)]
pub(crate) struct Condvar(loom::sync::Condvar);

impl Condvar {
    pub(crate) fn new() -> Self {
        Self(loom::sync::Condvar::new())
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(crate) fn wait<T>(&self, guard: &mut Guard<'_, T>) {
        let waited = self.0.wait(guard.0.take().unwrap()).unwrap();
        guard.0 = Some(waited);
    }
}

/// Like the standard library's: written once, released by `set`, acquired by `get`.
#[derive(Debug)]
pub(crate) struct OnceLock<T>(AtomicPtr<T>);

impl<T> Default for OnceLock<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> OnceLock<T> {
    pub(crate) fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    pub(crate) fn get(&self) -> Option<&T> {
        // SAFETY: the pointer is null, or came from a box in `set` and is never freed or written again.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }

    /// Leaks the value: a model is small.
    pub(crate) fn set(&self, value: T) -> Result<(), ()> {
        let value = Box::into_raw(Box::new(value));
        let set = self.0.compare_exchange(ptr::null_mut(), value, Ordering::AcqRel, Ordering::Acquire);
        set.map(|_| ()).map_err(|_| ())
    }
}
