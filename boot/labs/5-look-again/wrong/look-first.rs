//= part: look again
//= loses: an entry that was cleared behind the reference is noticed
    #[inline(always)]
    pub(super) fn take_and_recheck<const AT_ONCE: bool>(
        &self,
        page: &Page,
        nr: u32,
        entries: impl Recheck,
        above: Option<Seen<'_>>,
    ) -> Taken {
        let machine = &self.mm().machine;
        machine.reached(Point::GupLeafRead);
        // The look comes first: by the time that the reference is there it is an old one.
        let unchanged =
            entries.are_unchanged::<AT_ONCE>() && above.is_none_or(|above| above.still_leads_there::<AT_ONCE>());
        if !unchanged {
            return Taken::Refused;
        }
        let taken = if AT_ONCE { page.try_take_at_once::<PIN>(nr) } else { self.take(page, nr).is_ok() };
        machine.reached(Point::GupPinned);
        if taken { Taken::Kept } else { Taken::Refused }
    }
