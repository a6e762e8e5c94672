"""What tests stand on: real servers, real databases, clients, and the tools from npm."""
