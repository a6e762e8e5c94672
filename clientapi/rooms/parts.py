"""What the endpoints do with rooms, made of its parts."""

from clientapi.accounts.account_data import AccountDataStore
from clientapi.accounts.tell import Teller
from clientapi.clock import Clock
from clientapi.rooms.aliases import Aliases
from clientapi.rooms.annotations import Annotations
from clientapi.rooms.create import RoomCreator
from clientapi.rooms.guests import Guests
from clientapi.rooms.member_state import MemberState
from clientapi.rooms.membership import Memberships
from clientapi.rooms.profile_updates import ProfileUpdates
from clientapi.rooms.public_rooms import PublicRooms
from clientapi.rooms.redaction import Redactions
from clientapi.rooms.room_tasks import RoomTasks
from clientapi.rooms.send import RoomSender
from clientapi.rooms.successors import Successors
from clientapi.rooms.third_party_invites import ThirdPartyInvites
from clientapi.rooms.third_party_joins import ThirdPartyJoins
from clientapi.rooms.thread_roots import ThreadRoots
from clientapi.rooms.typing import Typing
from clientapi.rooms.upgrade import RoomUpgrades
from servicekit.config import Config
from servicekit.database import Database


class Rooms:
    """See the module."""

    def __init__(
        self,
        config: Config,
        db: Database,
        teller: Teller,
        account_data: AccountDataStore,
        sender: RoomSender,
        clock: Clock,
    ) -> None:
        self.config = config
        self.db = db
        self.teller = teller
        self.sender = sender
        self.remote = sender.remote
        self.successors = Successors(db, account_data, sender)
        self.memberships = Memberships(config, db, teller, sender, self.remote, self.successors, clock)
        self.member_state = MemberState(sender, self.memberships)
        self.annotations = Annotations(db, sender.queries)
        self.thread_roots = ThreadRoots(sender.queries)
        self.third_party_joins = ThirdPartyJoins(config, db, sender)
        self.guests = Guests(db, sender, self.memberships)
        self.redactions = Redactions(sender)
        self.aliases = Aliases(config, db, sender, self.remote, clock)
        self.third_party_invites = ThirdPartyInvites(sender, self.remote, self.memberships)
        self.creator = RoomCreator(
            config, db, sender, self.memberships, self.third_party_invites, self.aliases, clock
        )
        self.typing = Typing(sender, clock)
        self.tasks = RoomTasks(config, db, sender, self.memberships, self.creator, clock)
        self.upgrades = RoomUpgrades(db, sender, self.creator, self.successors)
        self.public_rooms = PublicRooms(config, db, sender)
        self.profile_updates = ProfileUpdates(db, sender, self.memberships, clock)
