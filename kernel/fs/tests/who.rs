//! Whose a byte of the device is, and who maps it.

mod rig;

use fs::error::FsError;
use fs::owner::Owner;
use mm::addr::PAGE_SIZE;
use rig::*;

#[test]
fn a_page_leads_to_its_file_and_to_who_maps_it() {
    let (emu, mm) = rig(2);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 4096);
        let fs = device.mount().unwrap();
        let file = fs.create(&cx(), "a", true).unwrap();
        fs.write(&cx(), &file, 0, &vec![1; (8 * PAGE_SIZE) as usize]).unwrap();
        let ino = fs.stat(&cx(), "a").unwrap().ino;
        let task = Task::with(&mm, 1, &file, 8);
        task.store(5, 1).unwrap();
        let pfn = task.space.translate(page(5)).unwrap().pfn_at(page(5));
        let offset = (pfn.as_u64() - START) * PAGE_SIZE;
        for byte in [0, PAGE_SIZE - 1] {
            let found = fs.owner_of(&cx(), offset + byte).unwrap().unwrap();
            assert!(matches!(found.owner, Owner::Data { ino: of, .. } if of == ino), "{:?}", found.owner);
            assert_eq!(found.page, 5);
            let (users, nr) = found.mapping.unwrap().some_users::<4>(5, 1);
            assert_eq!((users[0].0.0.id(), nr), (task.space.id(), 1));
        }
        assert_eq!(fs.owner_of(&cx(), 0).unwrap().unwrap().owner, Owner::Metadata);
        // The last block of the device is nobody's; beyond it there is none.
        assert!(fs.owner_of(&cx(), 4000 * PAGE_SIZE).unwrap().is_none());
        assert!(fs.owner_of(&cx(), u64::MAX).unwrap().is_none());
        drop((task, file));
        // By whatever directories it is reached; nothing is read for it.
        fs.mkdir(&cx(), "d").unwrap();
        fs.mkdir(&cx(), "d/e").unwrap();
        fs.rename(&cx(), "a", "d/e/b").unwrap();
        let path = || fs.path_of(&cx(), ino).unwrap().map(|path| String::from_utf8(path).unwrap());
        assert_eq!(path().as_deref(), Some("/d/e/b"));
        fs.rename(&cx(), "d/e", "f").unwrap();
        assert_eq!(path().as_deref(), Some("/f/b"));
        let file = fs.open(&cx(), "f/b").unwrap();
        let task = Task::with(&mm, 1, &file, 1);
        let mapping = task.space.vmas_from::<1>(page(0))[0].mapping.clone();
        assert_eq!(fs.file_mapped_by(&cx(), &mapping), Some(ino));
        fs.unlink(&cx(), "f/b").unwrap();
        assert_eq!((path(), fs.file_mapped_by(&cx(), &mapping)), (None, Some(ino)));
        drop((task, file));
        fs.reap(&cx());
        assert_eq!(fs.file_mapped_by(&cx(), &mapping), None);
        fs.unmount(&cx()).unwrap();
        assert!(matches!(fs.owner_of(&cx(), offset), Err(FsError::ShutDown(_))));
    });
}
